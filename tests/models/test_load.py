"""Loading: defaults of the manifest, shared components, precision, and bad folders in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline

from fewstep.errors import CheckpointError, InputError
from fewstep.models import load as loading
from fewstep.models.load import load, resolve, with_defaults
from fewstep.models.manifest import Manifest, manifest_of
from fewstep.zoo.shapes.pipeline import build_pipeline

CALL = {"height": 64, "width": 64, "max_sequence_length": 24, "num_inference_steps": 1, "output_type": "latent"}
SHARED = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a student that shares all but its transformer, and the teacher with weights stored in float16."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("zoo")
    pipe = build_pipeline()
    pipe.save_pretrained(folder / "teacher")
    Manifest("teacher", call=CALL).write(folder / "teacher")
    student = folder / "student"
    for part in ("transformer", "scheduler"):
        shutil.copytree(folder / "teacher" / part, student / part)
    shutil.copy(folder / "teacher" / "model_index.json", student)
    shares = {name: f"../teacher/{name}" for name in SHARED}
    Manifest("student", call=CALL, steps=1, teacher="teacher", shares=shares).write(student)
    pipe.to(torch.float16).save_pretrained(folder / "half")
    return folder


def dtypes(pipe: Any) -> dict[str, torch.dtype]:
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {name: next(part.parameters()).dtype for name, part in parts.items()}


def test_the_manifests_defaults_are_filled_in(zoo: Path) -> None:
    pipe = load(zoo / "teacher")
    assert pipe("a red ring").images.shape == (1, 64, 48)
    assert pipe("a red ring", height=32).images.shape == (1, 32, 48)  # the caller goes first
    assert pipe("a red ring", None, None, None, 1.0, 32).images.shape == (1, 32, 48)  # also by position


def test_text_of_the_manifest_gives_way_to_embeddings(zoo: Path) -> None:
    pipe = loading.with_defaults(load(zoo / "teacher"), Manifest("x", call={**CALL, "negative_prompt": ""}))
    negative = {"negative_prompt_embeds": torch.zeros(1, 32, 128), "negative_pooled_prompt_embeds": torch.zeros(1, 64)}
    assert pipe("a red ring", true_cfg_scale=2.0, **negative).images.shape == (1, 64, 48)


def test_it_is_still_the_plain_class(zoo: Path, tmp_path: Path) -> None:
    pipe = load(zoo / "teacher")
    assert isinstance(pipe, FluxPipeline)
    assert type(pipe).__name__ == "FluxPipeline"
    assert manifest_of(pipe) == Manifest("teacher", call=CALL)
    pipe.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "model_index.json").read_text())["_class_name"] == "FluxPipeline"


def test_shared_components_come_from_the_teacher(zoo: Path) -> None:
    teacher, student = load(zoo / "teacher"), load(str(zoo / "student"))
    ours, theirs = student.vae.state_dict(), teacher.vae.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert student("a red ring").images.shape == (1, 64, 48)


def test_weights_come_up_in_float32_unless_asked_otherwise(zoo: Path) -> None:
    assert set(dtypes(load(zoo / "half")).values()) == {torch.float32}
    assert set(dtypes(load(zoo / "half", torch_dtype=torch.float16)).values()) == {torch.float16}


def test_plain_diffusers_keeps_text_encoders_as_stored(zoo: Path) -> None:
    """Why the zoo stores its text encoders in float32: a student must run right without fewstep."""
    found = dtypes(DiffusionPipeline.from_pretrained(zoo / "half"))
    assert found["transformer"] == found["vae"] == torch.float32
    assert found["text_encoder"] == found["text_encoder_2"] == torch.float16


def test_zoo_names(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "ZOO", zoo)
    assert resolve("zoo:student") == zoo / "student"
    with pytest.raises(InputError, match=r"The zoo has no 'shape': it has half, student, teacher\."):
        resolve("zoo:shape")


def test_a_hub_id_stays_as_it_is() -> None:
    assert resolve("owner/name") == "owner/name"


@pytest.mark.parametrize("source", ["nowhere", "./a/b", "/no/such/folder", Path("owner/name")])
def test_what_is_neither_is_refused(source: str | Path) -> None:
    with pytest.raises(InputError, match="There is no folder"):
        resolve(source)


def test_a_folder_that_is_no_pipeline(zoo: Path) -> None:
    with pytest.raises(InputError, match=r"teacher/vae is no diffusers pipeline: it has no model_index\.json"):
        load(zoo / "teacher" / "vae")


def test_a_truncated_weight_file_is_named(zoo: Path, tmp_path: Path) -> None:
    shutil.copytree(zoo / "teacher", tmp_path / "cut")
    path = tmp_path / "cut" / "transformer" / "diffusion_pytorch_model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(
        CheckpointError, match=r"transformer/diffusion_pytorch_model\.safetensors is damaged or cut short"
    ):
        load(tmp_path / "cut")


def test_a_missing_component_is_named(zoo: Path, tmp_path: Path) -> None:
    shutil.copytree(zoo / "teacher", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "vae")
    with pytest.raises(InputError, match="lacks its component 'vae'"):
        load(tmp_path / "part")


def test_an_unreadable_config_is_refused_in_one_sentence(zoo: Path, tmp_path: Path) -> None:
    shutil.copytree(zoo / "teacher", tmp_path / "odd")
    (tmp_path / "odd" / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    with pytest.raises(InputError, match="Could not load a pipeline from"):
        load(tmp_path / "odd")


def test_noise_between_steps_is_drawn_from_the_calls_generator(zoo: Path) -> None:
    """Each sample's from its own, so that it does not depend on the batch."""
    pipe = load(zoo / "teacher")
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, stochastic_sampling=True)

    def drawn(*seeds: int) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        made: torch.Tensor = pipe(["a ring"] * len(seeds), generator=generators, num_inference_steps=3).images
        return made

    both = drawn(1, 2)
    assert torch.equal(both, drawn(1, 2))
    torch.testing.assert_close(both[1:], drawn(2))
    assert "step" not in vars(pipe.scheduler)


def test_a_default_negative_prompt_serves_a_list_of_prompts(zoo: Path) -> None:
    guided = Manifest("teacher", call={**CALL, "negative_prompt": "", "true_cfg_scale": 2.0})
    pipe = with_defaults(load(zoo / "teacher"), guided)
    assert len(pipe(["a red ring", "a blue box"]).images) == 2
    assert len(pipe("a red ring").images) == 1
