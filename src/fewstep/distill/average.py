"""Averages of students: on the way between the weights of students of one teacher lie students too.

Networks that were trained on from the same weights are often joined by a path along which all are as good, and a mean
of several beats each of them (arXiv 2203.05482, section 3). Students of several numbers of steps are such a family, and
a mean has something of what each has learnt: of the one of one step how to begin, of the one of four how to go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from fewstep.distill.export import Stored, export
from fewstep.distill.methods.backward import Stepping
from fewstep.distill.schedulers import kind_of, shift_of, times_of
from fewstep.errors import InputError, bad_value
from fewstep.machine import versions
from fewstep.models.load import load, resolve
from fewstep.models.manifest import Manifest, manifest_of
from fewstep.models.model import Model

OWNER = "an average"
EXAMPLE = {"prompt": "a"}  # what a call needs beside its defaults


@dataclass(frozen=True, eq=False)
class Mean:
    """Students, averaged.

    Attributes:
        pipe: the first's pipeline, with the mean in the place of its denoiser.
        component: the denoiser's name there.
        students: what the folder of each says about itself.
    """

    pipe: Any
    component: str
    students: tuple[Manifest, ...]

    @property
    def denoiser(self) -> nn.Module:
        found: nn.Module = getattr(self.pipe, self.component)
        return found


def mean_of(students: Mapping[str, float]) -> Mean:
    """The mean of the denoisers of students: names or folders, and weights, which add up to 1. Of weights below 0 or
    above 1 it lies beyond the students, not between them.

    Raises:
        InputError: fewer than two, or weights that do not add up to 1; a pipeline that is no student, or is of another
            teacher, structure or treatment of guidance than the first.
    """
    if len(students) < 2:
        raise InputError(bad_value("students", OWNER, "two or more", list(students)))
    numbers = all(isinstance(weight, int | float) for weight in students.values())
    if not numbers or not abs(sum(students.values()) - 1) <= 1e-6:
        raise InputError(bad_value("weights", OWNER, "numbers that add up to 1", list(students.values())))
    (first, share), *others = students.items()
    mean = _student(first)
    total = {key: share * value if _mixes(value) else value for key, value in mean.denoiser.state_dict().items()}
    manifests = [*mean.students]
    for name, share in others:
        other = _student(name)
        _check_alike(mean, other, first, name)
        for key, value in other.denoiser.state_dict().items():
            if _mixes(value):
                total[key] += share * value
        manifests += other.students
    mean.denoiser.load_state_dict(total)
    return replace(mean, students=tuple(manifests))


def average(
    students: Mapping[str, float],
    out: Path | str,
    *,
    steps: int,
    shift: float | None = None,
    sampler: Stepping = "euler",
    name: str | None = None,
    share: str | Path | None = None,
    stored: Stored = "float32",
    example: Mapping[str, Any] = EXAMPLE,
) -> Path:
    """Write the average of students as a student of its own, a pipeline folder; nothing is trained.

    Args:
        students: names or folders, and the weight of each; see `mean_of`.
        out: the folder to write.
        steps: of the average.
        shift: of its times; None: that of the student with the most steps, of which one of one step has none.
        sampler: how it is sampled; see `backward.Rollout`.
        name: in its manifest; None: the teacher's name and the steps.
        share: a pipeline with the parts that are not written; see `export`.
        stored: dtype of its weights on disk.
        example: what the pipeline's call needs beyond its defaults.

    Raises:
        InputError: see `mean_of`; or times that no scheduler gives.
        MachineError: the disk is full; what was in `out` before is whole.
    """
    if steps < 1:
        raise InputError(bad_value("steps", OWNER, "at least 1", steps))
    if sampler not in get_args(Stepping):
        raise InputError(bad_value("sampler", OWNER, f"one of {', '.join(get_args(Stepping))}", sampler))
    mean = mean_of(students)
    times = _times(mean, steps, shift)
    made_of = [
        {"student": one.name, "weight": weight, "made_by": dict(one.made_by)}
        for one, weight in zip(mean.students, students.values(), strict=True)
    ]
    first = mean.students[0]
    manifest = replace(
        first,
        name=name or f"{first.teacher}-{steps}step",
        call={**first.call, "num_inference_steps": steps},
        steps=steps,
        times=times,
        sampler=sampler,
        shares={},
        made_by={"averaged": made_of, "shift": shift, "versions": versions()},
    )
    beside, component = None if share is None else resolve(share), mean.component
    return export(mean.denoiser, mean.pipe, out, manifest, example, component=component, share=beside, stored=stored)


def _times(mean: Mean, steps: int, shift: float | None) -> tuple[float, ...]:
    """Of so many steps; see `average`."""
    known = max((one.times or () for one in mean.students), key=len)
    kind = kind_of(known)
    if kind != "flow":
        if shift is not None:
            raise InputError(bad_value("shift", OWNER, "left out: its times are no flow's", shift))
        return times_of(mean.pipe.scheduler, kind, steps)
    if shift is None and len(known) == 2 and steps > 1:
        raise InputError(bad_value("shift", OWNER, "given, since students of one step have none", shift))
    return times_of(mean.pipe.scheduler, kind, steps, shift_of(known) if shift is None else shift)


def _student(name: str) -> Mean:
    """A student alone."""
    pipe = load(name)
    manifest, denoisers = manifest_of(pipe), list(Model(pipe).denoisers)
    if manifest is None or manifest.steps is None or manifest.times is None:
        raise InputError(f"{name} is no student, and an average is one of students: its folder tells no steps.")
    if len(denoisers) != 1:
        raise InputError(f"{name} has {len(denoisers)} denoisers, and an average is one of pipelines with one.")
    return Mean(pipe, denoisers[0], (manifest,))


def _check_alike(one: Mean, other: Mean, first: str, name: str) -> None:
    """Raises InputError for students that have not grown from the same weights."""
    for what in ("teacher", "guidance_inside", "causal"):
        mine, its = (getattr(each.students[0], what) for each in (one, other))
        if mine != its:
            raise InputError(f"{name} can't be averaged with {first}: its {what!r} is {its!r}, and not {mine!r}.")
    shapes = [{key: value.shape for key, value in each.denoiser.state_dict().items()} for each in (one, other)]
    if unlike := sorted(key for key, _ in shapes[0].items() ^ shapes[1].items()):
        raise InputError(f"{name} can't be averaged with {first}: {unlike[0]!r} is not the same tensor in both.")


def _mixes(value: Tensor) -> bool:
    return torch.is_floating_point(value)
