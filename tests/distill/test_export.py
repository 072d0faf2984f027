"""A student's folder is a plain diffusers pipeline that steps at the student's times."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from fewstep.diffusion.samplers import flow_times
from fewstep.distill.export import export
from fewstep.distill.schedulers import shift_of, student_scheduler
from fewstep.errors import InputError
from fewstep.models.load import load
from fewstep.models.manifest import Manifest, manifest_of
from tests.distill.pipes import SHIFT, SIZE, pipeline, transformer, video_pipeline

STEPS = 3
MANIFEST = Manifest(
    "tiny-3step",
    call={**SIZE, "num_inference_steps": STEPS, "true_cfg_scale": 1.0},
    steps=STEPS,
    times=tuple(flow_times(STEPS, SHIFT)),
    guidance_inside=True,
)
EXAMPLE = {"prompt": "a red ring"}


def latents(pipe, **call):
    call = {**EXAMPLE, **SIZE, "num_inference_steps": STEPS, "output_type": "latent", **call}
    return pipe(**call, generator=torch.Generator().manual_seed(0)).images


@pytest.fixture(scope="module")
def teacher():
    return pipeline()


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(5)
    return transformer()


def test_diffusers_alone_runs_it_at_the_students_times(teacher, student, tmp_path):
    folder = export(student, teacher, tmp_path / "student", MANIFEST, EXAMPLE)
    plain = DiffusionPipeline.from_pretrained(folder)
    plain.set_progress_bar_config(disable=True)
    assert type(plain).__name__ == "FluxPipeline"
    out = latents(plain)
    torch.testing.assert_close(plain.scheduler.sigmas.double(), torch.tensor(MANIFEST.times, dtype=torch.float64))
    in_memory = type(teacher)(**{**teacher.components, "transformer": student, "scheduler": plain.scheduler})
    in_memory.set_progress_bar_config(disable=True)
    torch.testing.assert_close(out, latents(in_memory, true_cfg_scale=1.0, negative_prompt=None))
    assert manifest_of(load(folder)) == MANIFEST


def test_shared_parts_are_not_written_and_load_finds_them(teacher, student, tmp_path):
    teacher.save_pretrained(tmp_path / "teacher")
    whole = export(student, teacher, tmp_path / "whole", MANIFEST, EXAMPLE)
    thin = export(student, teacher, tmp_path / "thin", MANIFEST, EXAMPLE, share=tmp_path / "teacher")
    assert sorted(path.name for path in thin.iterdir()) == [
        "fewstep.json",
        "model_index.json",
        "scheduler",
        "transformer",
    ]
    assert torch.equal(latents(load(thin)), latents(load(whole)))
    with pytest.raises(InputError, match=r"The folder to share with, .*nowhere, has no"):
        export(student, teacher, tmp_path / "bad", MANIFEST, EXAMPLE, share=tmp_path / "nowhere")


def test_half_precision_weights_load_as_float32_in_diffusers(teacher, student, tmp_path):
    folder = export(student, teacher, tmp_path / "half", MANIFEST, EXAMPLE, stored="float16")
    whole = export(student, teacher, tmp_path / "whole", MANIFEST, EXAMPLE)
    size = [next(f.glob("transformer/*.safetensors")).stat().st_size for f in (folder, whole)]
    assert size[0] < 0.6 * size[1]
    plain = DiffusionPipeline.from_pretrained(folder)
    assert plain.transformer.dtype == torch.float32
    wanted = student.state_dict()
    for name, value in plain.transformer.state_dict().items():
        assert torch.equal(value, wanted[name].half().float())
    assert next(student.parameters()).dtype == torch.float32  # ours is left alone


def test_a_failed_export_leaves_the_folder_as_it_was(teacher, student, tmp_path):
    folder = export(student, teacher, tmp_path / "student", MANIFEST, EXAMPLE)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(InputError, match="asks its transformer 6 times in 3 steps: turn its guidance off"):
        export(
            student,
            teacher,
            folder,
            replace(MANIFEST, call={**MANIFEST.call, "true_cfg_scale": 2.0, "negative_prompt": ""}),
            EXAMPLE,
        )
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_times_that_no_shift_gives_are_refused(teacher, student, tmp_path):
    wrong = replace(MANIFEST, times=(1.0, 0.5, 0.4, 0.0))
    with pytest.raises(InputError, match="'times' of the student must be those of a shifted flow"):
        export(student, teacher, tmp_path / "s", wrong, EXAMPLE)
    with pytest.raises(InputError, match="must have its steps and times"):
        export(student, teacher, tmp_path / "s", replace(MANIFEST, times=None), EXAMPLE)
    with pytest.raises(InputError, match="'stored' of export"):
        export(student, teacher, tmp_path / "s", MANIFEST, EXAMPLE, stored="int8")  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [3, 4, 8])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_times_that_diffusers_spaces_have_their_shift_too_and_a_student_its_own(steps, shift):
    """As in Wan and SD 3, which tell their scheduler a number alone."""
    spaced = FlowMatchEulerDiscreteScheduler(shift=shift)
    spaced.set_timesteps(steps)
    assert shift_of(tuple(spaced.sigmas.tolist())) == pytest.approx(shift, rel=1e-3)
    pipe = video_pipeline()
    pipe.scheduler = spaced
    wanted = flow_times(steps, shift)
    student = student_scheduler(pipe, wanted)
    student.set_timesteps(steps)
    assert student.sigmas.tolist() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("steps", [2, 5])
def test_shift_of_inverts_flow_times(steps, shift):
    assert shift_of(flow_times(steps, shift)) == pytest.approx(shift)


def test_one_step_fits_every_shift():
    assert shift_of([1.0, 0.0]) == 1.0
