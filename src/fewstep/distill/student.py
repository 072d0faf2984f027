"""What a student's folder says about itself, and its writing."""

from __future__ import annotations

import inspect
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fewstep.distill.export import export, export_lora
from fewstep.distill.job import Job
from fewstep.distill.lora import Adapter
from fewstep.distill.methods.backward import Stepping
from fewstep.machine import versions
from fewstep.models.manifest import Manifest, manifest_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from fewstep.distill.ladder import Ladder


def manifest_for(
    pipe: DiffusionPipeline, job: Job, times: tuple[float, ...], sampler: Stepping, *, guided: bool
) -> Manifest:
    """The manifest of a student with these times. `guided`: its teacher is asked once for each branch of guidance."""
    steps, of_teacher = len(times) - 1, manifest_of(pipe)
    teacher = of_teacher.name if of_teacher else type(pipe).__name__
    call = {**(dict(of_teacher.call) if of_teacher else {}), **job.call}
    if guided:
        call = unguided(call, inspect.signature(type(pipe).__call__).parameters)
    return Manifest(
        name=job.name or f"{teacher}-{steps}step",
        call={**call, "num_inference_steps": steps},
        steps=steps,
        times=times,
        sampler=sampler,
        guidance_inside=True,
        teacher=teacher,
        made_by={**job.facts(), "versions": versions()},
    )


def unguided(call: Mapping[str, Any], accepted: Container[str]) -> dict[str, Any]:
    """The call with classifier-free guidance off: a scale of 1 in the argument that this pipeline guides by."""
    kept = {name: value for name, value in call.items() if not name.startswith("negative_prompt")}
    return {**kept, "true_cfg_scale" if "true_cfg_scale" in accepted else "guidance_scale": 1.0}


def write_student(ladder: Ladder, weights: nn.Module) -> Path:
    """The student's folder, `out/student`, from what the ladder gave."""
    job, pipe = ladder.job, ladder.pipe
    folder, manifest = Path(job.out) / "student", ladder.manifest(job.steps, job.stepping)
    if job.saved == "lora":
        assert isinstance(weights, Adapter)
        return export_lora(weights, pipe, folder, manifest, component=ladder.component)
    return export(
        ladder.plain(weights, job.steps),
        pipe,
        folder,
        manifest,
        ladder.example,
        component=ladder.component,
        share=Path(str(pipe.config.get("_name_or_path", ""))) if job.share else None,
        stored=job.stored,
    )
