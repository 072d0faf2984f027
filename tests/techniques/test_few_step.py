"""A student in the pipeline's place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fewstep.accelerate import accelerate
from fewstep.errors import InputError
from fewstep.models.load import load
from fewstep.models.manifest import Manifest
from fewstep.models.model import Model
from fewstep.techniques import FewStep
from fewstep.techniques.few_step import different_fields, student_call
from tests.techniques.tiny import ABLE, CALL, PROMPT, as_loaded, pipeline, run, state, student_folder


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return student_folder(tmp_path_factory.mktemp("student") / "pipe")


def test_different_fields_ignores_what_the_file_says_of_itself() -> None:
    assert different_fields({"a": (1, 2), "_diffusers_version": "1"}, {"a": [1, 2], "_diffusers_version": "2"}) == []
    assert different_fields({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == ["b", "c"]


def test_student_call_turns_guidance_off_as_the_pipeline_has_it() -> None:
    manifest = Manifest("s", steps=4, guidance_inside=True)
    flux = {"prompt": 0, "negative_prompt": 0, "true_cfg_scale": 0, "guidance_scale": 0}
    assert student_call(manifest, flux, embedded_guidance=False) == {
        "num_inference_steps": 4,
        "negative_prompt": None,
        "true_cfg_scale": 1.0,
    }
    wan = {"prompt": 0, "guidance_scale": 0}
    assert student_call(manifest, wan, embedded_guidance=False) == {"num_inference_steps": 4, "guidance_scale": 1.0}
    assert student_call(manifest, wan, embedded_guidance=True) == {"num_inference_steps": 4}
    assert student_call(Manifest("s", call={"height": 64}), flux, embedded_guidance=False) == {"height": 64}


def test_the_student_runs_in_its_own_steps_and_as_it_would_alone(student: Path) -> None:
    """The teacher's defaults (guidance, 4 steps) give way to the student's; its picture is that of its own pipeline."""
    pipe = as_loaded(pipeline())
    fast = accelerate(pipe, FewStep(str(student)), ABLE)
    image = fast(PROMPT, generator=torch.Generator().manual_seed(7), output_type="latent").images
    assert pipe.scheduler.timesteps.shape == (2,)
    assert not pipe.do_classifier_free_guidance if hasattr(pipe, "do_classifier_free_guidance") else True
    common = {"text_encoder": pipe.text_encoder, "text_encoder_2": pipe.text_encoder_2, "vae": pipe.vae}
    alone = load(student, **common)
    alone.set_progress_bar_config(disable=True)
    expected = alone(PROMPT, generator=torch.Generator().manual_seed(7), **CALL).images
    assert torch.equal(image, expected)


def test_remove_brings_back_the_same_objects(student: Path) -> None:
    pipe = as_loaded(pipeline())
    before, plain, transformer = state(pipe), run(pipe), pipe.transformer
    fast = accelerate(pipe, FewStep(str(student)), ABLE)
    assert pipe.transformer is not transformer
    fast.remove()
    assert pipe.transformer is transformer
    assert state(pipe) == before
    assert torch.equal(run(pipe), plain)


def test_the_text_encoders_and_vae_stay_the_pipelines_own(student: Path) -> None:
    pipe = pipeline()
    parts = (pipe.text_encoder, pipe.text_encoder_2, pipe.vae, pipe.tokenizer)
    accelerate(pipe, FewStep(str(student)), ABLE)
    assert (pipe.text_encoder, pipe.text_encoder_2, pipe.vae, pipe.tokenizer) == parts


def test_problems_say_what_does_not_fit(student: Path, tmp_path: Path) -> None:
    assert FewStep(str(student)).problems(Model(pipeline()), ABLE) == []
    (other,) = FewStep(str(student)).problems(Model(pipeline(num_single_layers=1)), ABLE)
    assert "num_single_layers=2 (not 1)" in other
    (missing,) = FewStep("zoo:no-such").problems(Model(pipeline()), ABLE)
    assert "no-such" in missing
    (tmp_path / "empty").mkdir()
    (bare,) = FewStep(str(tmp_path / "empty")).problems(Model(pipeline()), ABLE)
    assert "fewstep.json" in bare


def test_a_manifest_without_steps_is_no_student(tmp_path: Path) -> None:
    folder = student_folder(tmp_path / "teacher", manifest=Manifest("tiny"))
    (problem,) = FewStep(str(folder)).problems(Model(pipeline()), ABLE)
    assert "'steps'" in problem


@pytest.mark.parametrize("student", ["", None, 3])
def test_bad_fields(student: object) -> None:
    with pytest.raises(InputError, match="'student' of FewStep"):
        FewStep(student)  # type: ignore[arg-type]


def test_a_students_noise_between_steps_is_drawn_from_the_calls_generator(tmp_path: Path) -> None:
    renoising = pipeline(seed=1)
    config = renoising.scheduler.config
    renoising.register_modules(scheduler=type(renoising.scheduler).from_config(config, stochastic_sampling=True))
    student = student_folder(tmp_path / "student", pipe=renoising)
    fast = accelerate(pipeline(), FewStep(str(student)), ABLE)
    once, again, other = (run(fast, steps=2, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
