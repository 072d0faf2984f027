"""What a server is told, from a command line or a file; and what is read off a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.errors import InputError
from fewstep.media import write_mp4
from fewstep.models.load import load
from fewstep.server.config import ModelEntry, read_models
from fewstep.server.engine import Shot, Work, arguments
from fewstep.server.facts import Facts, facts_of, frames_for
from fewstep.server.images import fitting
from fewstep.server.videos import length

FACTS = Facts("image", (64, 64), 16, None, 4, None, frozenset({"image"}), False)


def test_one_model_from_a_command_line(tmp_path: Path) -> None:
    [zoo] = read_models("zoo:shapes-1step", "fast")
    assert (zoo.name, zoo.model, zoo.recipe) == ("zoo:shapes-1step", "zoo:shapes-1step", "fast")
    (tmp_path / "mine").mkdir()
    [mine] = read_models(str(tmp_path / "mine"), None)
    assert mine.name == "mine"


def test_many_models_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("models:\n  - {name: a, model: zoo:shapes-1step, recipes: {plain: []}}\n  - {name: b, model: x/y}")
    first, second = read_models(str(file), None)
    assert (first.name, first.recipes, second.model) == ("a", {"plain": []}, "x/y")
    with pytest.raises(InputError, match="leave out --recipe"):
        read_models(str(file), "fast")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: []", "at least one model"),
        ("models: [{name: a}]", "'model' of .*models.yaml, model 1"),
        ("models: [{name: a, model: x, speed: 9}]", "'speed'"),
        ("models: [{name: a, model: x}, {name: a, model: y}]", "the name 'a'"),
        ("models: [{name: a, model: x, batch: 0}]", "'batch'"),
        ("other: []", "under 'models'"),
        ("{", "must be a YAML file"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=said):
        read_models(str(file), None)


def test_what_is_read_off_the_zoo_s_pipelines() -> None:
    shapes = facts_of(load("zoo:shapes-1step"), {}, {})
    assert (shapes.kind, shapes.size, shapes.multiple, shapes.guidance) == ("image", (64, 64), 16, None)
    assert shapes.edits == {"image", "mask"}
    teacher = facts_of(load("zoo:shapes"), {"width": 32}, {})
    assert (teacher.size, teacher.guidance) == ((32, 64), "true_cfg_scale")
    moving = facts_of(load("zoo:moving-shapes"), {}, {})
    assert (moving.kind, moving.frames, moving.frame_step, moving.guidance) == ("video", 17, 4, "guidance_scale")
    assert not moving.edits


@pytest.mark.parametrize(("seconds", "frames"), [(1, 17), (0.01, 5), (4, 65), (0.5, 9)])
def test_a_video_has_as_many_frames_as_its_vae_can_decode(seconds: float, frames: int) -> None:
    assert frames_for(seconds, 16, 4) == frames


def test_the_length_is_said_as_it_was_asked_for() -> None:
    entry = ModelEntry(name="a", model="a")
    video = Facts("video", (64, 64), 16, 17, 4, None, frozenset(), False)
    assert length(entry, video, None) == ("1.06", 17)
    assert length(entry, video, 4.0) == ("4", 65)


def test_guidance_that_needs_a_second_prompt_gets_one() -> None:
    facts = Facts("image", (64, 64), 16, None, 4, "true_cfg_scale", frozenset(), False)
    call = arguments(Work("a", "default", (64, 32), guidance=2.0), [Shot("a", 0)], {"max_sequence_length": 9}, facts)
    assert call == {
        "prompt": ["a"],
        "width": 64,
        "height": 32,
        "true_cfg_scale": 2.0,
        "negative_prompt": "",
        "max_sequence_length": 9,
        "output_type": "pil",
    }


@pytest.mark.parametrize(("given", "made"), [((512, 512), (64, 64)), ((10, 10), (64, 64)), ((1000, 250), (128, 32))])
def test_an_edit_has_the_model_s_number_of_pixels(given: tuple[int, int], made: tuple[int, int]) -> None:
    assert fitting(given, FACTS) == made


@pytest.mark.parametrize("shape", [(5, 16, 16, 3), (1, 15, 17, 3)])
def test_a_video_shows_its_frames(tmp_path: Path, shape: tuple[int, ...]) -> None:
    import av

    frames: Any = np.zeros(shape, np.uint8)
    frames[..., 0] = np.linspace(0, 200, shape[0]).astype(np.uint8)[:, None, None]
    write_mp4(tmp_path / "a.mp4", frames, 8)
    with av.open(str(tmp_path / "a.mp4")) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(shown) == shape[0]
    for one, frame in zip(shown, frames, strict=True):
        assert np.abs(one[: shape[1], : shape[2]].astype(int) - frame).mean() < 6
