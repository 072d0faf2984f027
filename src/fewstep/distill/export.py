"""A student as a plain diffusers pipeline: it runs in its few steps with diffusers alone, guidance already inside."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.distill.engine.lora import Adapter, peft_state
from fewstep.distill.schedulers import check_times, student_scheduler
from fewstep.errors import InputError, bad_value
from fewstep.files import read_json, replacing, write_json
from fewstep.models.hooks import wrapped
from fewstep.models.manifest import Manifest

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Stored = Literal["float32", "float16", "bfloat16"]
LORA = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for


def export(
    student: nn.Module,
    pipe: DiffusionPipeline,
    folder: Path | str,
    manifest: Manifest,
    example: Mapping[str, Any],
    *,
    component: str = "transformer",
    share: Path | str | None = None,
    stored: Stored = "float32",
) -> Path:
    """Write the student as a pipeline folder that `DiffusionPipeline.from_pretrained` loads.

    Args:
        student: the trained module, of the class of the pipeline's `component`.
        pipe: the teacher; its other parts become the student's, its scheduler is replaced by one whose
            `num_inference_steps=manifest.steps` gives the times in `manifest.times`.
        manifest: goes into the folder as `fewstep.json`; `steps` and `times` must be there.
        example: what the call needs beyond `manifest.call`, like a prompt (one): the pipeline is run once with it, to
            see that it takes the student's steps and nothing more.
        share: the teacher's folder: the parts that are the same are not written, the manifest says where they are. Such
            a folder needs `fewstep.load`; diffusers alone needs them written.
        stored: dtype of the student's weights on disk. diffusers computes in float32 unless told otherwise.

    Raises:
        InputError: times that no scheduler gives, or that the pipeline does not use.
        MachineError: the disk is full; what was in `folder` before is whole.
    """
    folder = Path(folder)
    if manifest.steps is None or manifest.times is None:
        raise InputError(f"The manifest of the student {manifest.name!r} must have its steps and times.")
    if stored not in get_args(Stored):
        raise InputError(bad_value("stored", "export", f"one of {', '.join(get_args(Stored))}", stored))
    scheduler = student_scheduler(pipe, manifest.times, renoise=manifest.sampler == "renoise")
    parts = {**pipe.components, component: student.eval(), "scheduler": scheduler}
    whole = type(pipe)(**parts)
    check_steps(whole, component, manifest, example)
    shares = _shares(whole, {component, "scheduler"}, folder, Path(share)) if share is not None else {}
    with replacing(folder) as aside:
        aside.mkdir()
        whole.save_config(aside)  # model_index.json
        for name, part in whole.components.items():
            if part is not None and name not in shares:
                (_cast(part, stored) if name == component else part).save_pretrained(aside / name)
        config = aside / component / "config.json"
        write_json(config, {key: value for key, value in read_json(config).items() if key != "_name_or_path"})
        Manifest(**{**vars(manifest), "shares": shares}).write(aside)
    return folder


def export_lora(
    adapter: Adapter,
    pipe: DiffusionPipeline,
    folder: Path | str,
    manifest: Manifest,
    *,
    component: str = "transformer",
) -> Path:
    """Write the student as a LoRA file for the teacher's pipeline, with its scheduler and `fewstep.json` beside it.

        pipe.load_lora_weights(folder)
        pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
        pipe(prompt, **manifest.call)

    Raises:
        InputError: a pipeline that loads no LoRA files, or times that no scheduler gives.
        MachineError: the disk is full; what was in `folder` before is whole.
    """
    check_lora(pipe)
    assert manifest.times is not None
    scheduler = student_scheduler(pipe, manifest.times, renoise=manifest.sampler == "renoise")
    with replacing(Path(folder)) as aside:
        aside.mkdir()
        save_file(peft_state(adapter, component), str(aside / LORA), metadata={"format": "pt"})
        scheduler.save_pretrained(aside / "scheduler")
        manifest.write(aside)
    return Path(folder)


def check_lora(pipe: DiffusionPipeline) -> None:
    """Raises InputError for a pipeline that can't load a LoRA file."""
    if not hasattr(pipe, "load_lora_weights"):
        raise InputError(f"{type(pipe).__name__} loads no LoRA files: take saved: pipeline.")


@torch.no_grad()
def check_steps(pipe: DiffusionPipeline, component: str, manifest: Manifest, example: Mapping[str, Any]) -> None:
    """Run the pipeline once on one sample: pipelines differ in how they choose times and turn guidance off.

    Raises:
        InputError: it steps at other times than the manifest's, or asks the student more than once a step.
    """
    assert manifest.times is not None
    samples: list[int] = []

    def counted(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        samples.append(next(len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)))
        return forward(*args, **kwargs)

    pipe.set_progress_bar_config(disable=True)
    with wrapped(getattr(pipe, component), counted):
        pipe(**{**manifest.call, **example, "num_inference_steps": manifest.steps, "output_type": "latent"})
    check_times(pipe.scheduler, manifest.times, type(pipe).__name__)
    if sum(samples) != manifest.steps:
        raise InputError(
            f"{type(pipe).__name__} asks its {component} {sum(samples)} times in {manifest.steps} steps: "
            f"turn its guidance off in the student's call, {dict(manifest.call)}."
        )


def _cast(module: nn.Module, stored: Stored) -> Any:
    return module if stored == "float32" else copy.deepcopy(module).to(getattr(torch, stored))


def _shares(pipe: DiffusionPipeline, own: set[str], folder: Path, teacher: Path) -> dict[str, str]:
    """Part -> the teacher's folder of it, relative to the student's."""
    names = [name for name, part in pipe.components.items() if part is not None and name not in own]
    missing = [name for name in names if not (teacher / name).is_dir()]
    if missing:
        raise InputError(f"The folder to share with, {teacher}, has no {missing[0]!r}.")
    return {name: os.path.relpath(teacher / name, folder) for name in names}
