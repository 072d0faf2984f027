"""The registry, over a tiny zoo made in a temporary folder: a teacher and a student that shares its parts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.errors import InputError
from fewstep.models.manifest import Manifest
from fewstep.zoo import registry
from fewstep.zoo.moving import pipeline as moving
from fewstep.zoo.shapes.pipeline import build_pipeline

CALL: dict[str, Any] = {"height": 64, "width": 64, "max_sequence_length": 24, "num_inference_steps": 1}
SHARED = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    pipe = build_pipeline()
    pipe.save_pretrained(root / "teacher")
    made_by = {"command": "fewstep zoo train shapes", "versions": {"torch": "2"}}
    Manifest("teacher", call={**CALL, "num_inference_steps": 50}, made_by=made_by).write(root / "teacher")
    student = root / "student"
    pipe.save_config(student)
    for part in ("transformer", "scheduler"):
        getattr(pipe, part).save_pretrained(student / part)
    shares = {part: f"../teacher/{part}" for part in SHARED}
    Manifest("student", call=CALL, steps=1, guidance_inside=True, teacher="teacher", shares=shares).write(student)
    return root


def test_the_models_are_named(zoo: Path) -> None:
    (zoo / "no-model").mkdir(exist_ok=True)
    assert registry.names(zoo) == ["student", "teacher"]


def test_info_says_what_a_model_is(zoo: Path) -> None:
    teacher, student = registry.info("teacher", zoo), registry.info("student", zoo)
    assert (teacher.pipeline, teacher.steps, teacher.teacher) == ("FluxPipeline", 50, None)
    assert (student.steps, student.teacher) == (1, "teacher")
    assert "one step" in student.what or "1 step" in student.what
    assert teacher.made_by["command"] == "fewstep zoo train shapes"
    assert student.size_mb == pytest.approx(teacher.size_mb, rel=0.01)  # with what it shares


def test_an_exported_student_runs_with_diffusers_alone_by_its_card(zoo: Path, tmp_path: Path) -> None:
    folder = registry.export("student", tmp_path / "out", zoo)
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    exported = Manifest.read(folder)
    assert exported is not None
    assert exported.shares == {}
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    picture = tmp_path / "picture.png"
    exec(code.replace("path/to/this/folder", str(folder)).replace("picture.png", str(picture)), {})
    assert picture.stat().st_size > 0


def test_an_exported_video_model_runs_with_diffusers_alone_by_its_card(tmp_path: Path) -> None:
    torch.manual_seed(0)
    moving.build_pipeline().save_pretrained(tmp_path / "weights" / "mover")
    call = {**moving.CALL, "num_inference_steps": 1}
    Manifest("mover", call=call).write(tmp_path / "weights" / "mover")
    assert "clips" in registry.info("mover", tmp_path / "weights").what
    folder = registry.export("mover", tmp_path / "out", tmp_path / "weights")
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-to-video" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    clip = tmp_path / "clip.mp4"
    exec(code.replace("path/to/this/folder", str(folder)).replace("clip.mp4", str(clip)), {})
    assert clip.stat().st_size > 0


def test_a_folder_that_is_not_empty_is_left_alone(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        registry.export("student", tmp_path, zoo)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("ask", [registry.info, lambda name, root: registry.export(name, root / "x", root)])
@pytest.mark.parametrize("name", ["unicorn", "../teacher", ""])
def test_an_unknown_name_lists_the_known(zoo: Path, ask: Any, name: str) -> None:
    with pytest.raises(InputError, match="student, teacher"):
        ask(name, zoo)


def test_a_missing_component_is_named(zoo: Path, tmp_path: Path) -> None:
    broken = tmp_path / "student"
    broken.mkdir()
    for name in ("model_index.json", "fewstep.json"):
        (broken / name).write_bytes((zoo / "student" / name).read_bytes())
    with pytest.raises(InputError, match="lacks its component"):
        registry.info("student", tmp_path)
