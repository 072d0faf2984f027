"""Use a student: weights that were distilled to need few steps, with the scheduler and the call that go with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from fewstep.errors import FewstepError, InputError, bad_value
from fewstep.files import read_json
from fewstep.machine import Machine
from fewstep.models.load import load, resolve
from fewstep.models.manifest import FILE, Manifest
from fewstep.models.model import Model
from fewstep.techniques.base import Engaged, Stage, Technique, undo_all

OF_THE_FILE = ("_class_name", "_diffusers_version", "_name_or_path", "_use_default_values")  # not facts about the model


def different_fields(mine: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the config fields in which two models differ, and so can't stand in for each other."""
    names = {*mine, *other} - set(OF_THE_FILE)
    return sorted(name for name in names if _plain(mine.get(name)) != _plain(other.get(name)))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def student_call(manifest: Manifest, parameters: Mapping[str, Any], *, embedded_guidance: bool) -> dict[str, Any]:
    """What to give a pipeline's call (of these parameters) for a student: its steps, and no second call for guidance.

    `embedded_guidance`: the model takes the guidance scale as an input, so that a scale of 1 would not mean none.
    """
    call: dict[str, Any] = {"num_inference_steps": manifest.steps} if manifest.steps else {}
    if manifest.guidance_inside:
        off = {"negative_prompt": None, "true_cfg_scale": 1.0}
        if "true_cfg_scale" not in parameters and not embedded_guidance:
            off["guidance_scale"] = 1.0
        call |= {name: value for name, value in off.items() if name in parameters}
    return {**call, **manifest.call}


@dataclass(frozen=True)
class FewStep(Technique):
    """Put a student's denoiser and scheduler in the place of the pipeline's own.

    Attributes:
        student: `zoo:NAME`, a pipeline folder, or a hub id; it must hold a `fewstep.json` that says its steps.
    """

    name: ClassVar[str] = "few_step"
    stage: ClassVar[Stage] = Stage.WEIGHTS
    claims: ClassVar[frozenset[str]] = frozenset({"denoiser.module", "scheduler"})

    student: str = ""

    def faults(self) -> list[str]:
        named = isinstance(self.student, str) and bool(self.student)
        rule = "'zoo:NAME', a pipeline folder or a hub id"
        return [] if named else [bad_value("student", "FewStep", rule, self.student)]

    def problems(self, model: Model, machine: Machine) -> list[str]:
        try:
            folder = _folder(self.student, weights=False)
            manifest = _manifest(folder, self.student)
        except FewstepError as error:
            return [str(error)]
        return [
            *(
                []
                if manifest.steps
                else [f"{self.student} can't be used as a student: its {FILE} does not say its 'steps'."]
            ),
            *(problem for name, module in model.denoisers.items() for problem in self._mismatch(folder, name, module)),
        ]

    def apply(self, model: Model, machine: Machine) -> Engaged:
        folder = _folder(self.student, weights=True)
        manifest = _manifest(folder, self.student)
        # What the student does not bring is taken from this pipeline, not loaded a second time.
        common = {
            name: part for name, part in model.pipe.components.items() if name not in (*model.denoisers, "scheduler")
        }
        student = load(folder, **common)
        steps: list[Callable[[], None]] = []
        for name, module in model.denoisers.items():
            ours: nn.Module = getattr(student, name)
            ours.to(_device(module)).train(module.training)
            _replace(model.pipe, name, ours, steps)
        _replace(model.pipe, "scheduler", student.scheduler, steps)
        embedded = any(getattr(m.config, "guidance_embeds", False) for m in model.denoisers.values())
        parameters = inspect.signature(model.pipe.__call__).parameters
        call = student_call(manifest, parameters, embedded_guidance=embedded)
        told = {name: getattr(manifest, name) for name in ("steps", "sampler", "guidance_inside")}
        facts = {"student": manifest.name, **told, "modules": list(model.denoisers)}
        return Engaged(self.name, facts, undo_all(steps), call_defaults=call)

    def _mismatch(self, folder: Path, name: str, module: Any) -> list[str]:
        path = folder / name / "config.json"
        if not path.exists():
            return [f"{self.student} can't be used as a student of this pipeline: it has no {name}."]
        config = read_json(path)
        theirs, ours = config.get("_class_name"), type(module).__name__
        if theirs != ours:
            return [f"The {name} of {self.student} must be a {ours}, like the pipeline's. Got a {theirs}."]
        different = different_fields(dict(module.config), {**_defaults(module), **config})
        if different:
            values = ", ".join(f"{field}={config.get(field)} (not {module.config.get(field)})" for field in different)
            return [f"The {name} of {self.student} must have the pipeline's config. Got {values}."]
        return []


def _defaults(module: Any) -> dict[str, Any]:
    """What a config file that leaves a field out means by that."""
    parameters = inspect.signature(type(module).__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _folder(source: str, *, weights: bool) -> Path:
    """The student's folder; of a hub id only the JSON files are fetched unless `weights`.

    Raises:
        InputError: no such place, or the hub can't be reached.
    """
    place = resolve(source)
    if isinstance(place, Path):
        return place
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(place, allow_patterns=None if weights else ["*.json", "*/*.json"]))
    except (OSError, ValueError) as error:
        raise InputError(f"Could not get the student {source} from the hub: {str(error).splitlines()[0]}") from error


def _manifest(folder: Path, source: str) -> Manifest:
    manifest = Manifest.read(folder)
    if manifest is None:
        raise InputError(f"{source} can't be used as a student: its folder has no {FILE}, which says its steps.")
    return manifest


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _replace(pipe: Any, name: str, part: Any, steps: list[Callable[[], None]]) -> None:
    original = getattr(pipe, name)
    setattr(pipe, name, part)
    steps.append(lambda: setattr(pipe, name, original))
