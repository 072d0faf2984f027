"""The form of the denoiser calls of a step, and which form holds at which time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import InputError, TraceError
from fewstep.models.tracing.clock import TimeArg
from fewstep.models.tracing.cond import Cond
from fewstep.models.tracing.guide import Guidance
from fewstep.models.tracing.inputs import HALF, InputForm
from fewstep.models.tracing.leaves import Path, put
from fewstep.models.tracing.outputs import OutputForm


@dataclass(frozen=True)
class CallForm:
    """One call of a denoiser within a step: the branches it runs along the batch, and how its arguments are made."""

    name: str  # the component called
    branches: tuple[str, ...]
    x: InputForm
    times: tuple[TimeArg, ...]
    output: OutputForm

    def run(self, module: nn.Module, x_t: Tensor, t: Tensor | float, cond: Cond) -> dict[str, Tensor]:
        """Each branch's own output, shape of x_t."""
        batch = x_t.shape[0]
        args: dict[str, Any] = dict(cond.merged(self.branches, batch))
        dtype, rest = self.x.dtype, args.pop(self.x.rest_name, None)
        if dtype in HALF:
            dtype = precision_of(module) or dtype
            args, rest = from_half(args, dtype), from_half(rest, dtype)
        args = _put(args, self.x.path, self.x.build(x_t, t, rest, dtype))
        for time in self.times:
            args = _put(args, time.path, time.build(t, batch * len(self.branches), x_t.device))
        output = module(**args)
        prediction = self.resized(x_t).take(output)
        if len(self.branches) == 1:
            return {self.branches[0]: prediction}
        return dict(zip(self.branches, prediction.chunk(len(self.branches)), strict=True))

    def resized(self, x_t: Tensor) -> OutputForm:
        """The output's form for this x_t, which may be of another resolution than the recorded."""
        narrow = self.output.narrow
        if narrow is None or narrow[2] == x_t.shape[narrow[0]]:
            return self.output
        return replace(self.output, narrow=(narrow[0], narrow[1], x_t.shape[narrow[0]]))

    def only(self, branch: str) -> CallForm:
        """The same call with one of its branches."""
        return replace(self, branches=(branch,), x=replace(self.x, repeats=1))


def precision_of(module: nn.Module) -> torch.dtype | None:
    """What it computes in; None where its weights are neither float32 nor of 16 bits."""
    own = getattr(module, "dtype", None) or next((p.dtype for p in module.parameters()), None)
    return own if own in (torch.float32, *HALF) else None


def from_half(value: Any, own: torch.dtype) -> Any:
    """An argument with its tensors of 16 bits in `own`: a student's weights may be float32 where the teacher's are not.
    Others stay, as times and places need all their digits."""
    if isinstance(value, Tensor):
        return value.to(own) if value.dtype in HALF else value
    if isinstance(value, dict):
        return {key: from_half(one, own) for key, one in value.items()}
    return type(value)(from_half(one, own) for one in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Stage:
    """A stretch of time over which every step makes the same calls: `high` ≥ t ≥ `low`, as recorded."""

    high: float
    low: float
    calls: tuple[CallForm, ...]
    guidance: Guidance

    def run(self, modules: Mapping[str, nn.Module], x_t: Tensor, t: Tensor | float, cond: Cond) -> dict[str, Tensor]:
        branches: dict[str, Tensor] = {}
        for call in self.calls:
            branches |= call.run(modules[call.name], x_t, t, cond)
        return branches

    def only(self, branch: str) -> Stage:
        """The stage with one branch, unguided.

        Raises:
            InputError: the stage has no such branch.
        """
        for call in self.calls:
            if branch in call.branches:
                return Stage(self.high, self.low, (call.only(branch),), Guidance({branch: 1.0}, self.guidance.sign))
        have = ", ".join(name for call in self.calls for name in call.branches)
        raise InputError(f"This denoiser has no branch {branch!r}: it has {have}.")


def stage_at(stages: Sequence[Stage], switch: float | None, t: Tensor | float) -> Stage:
    """The stage in force at t; outside the recorded times the first or the last.

    Raises:
        TraceError: t is between two stages, where the recording does not tell which holds, or a batch needs both.
    """
    if len(stages) == 1:
        return stages[0]
    if isinstance(t, Tensor) and t.dim() > 0:
        found = {id(stage): stage for stage in (stage_at(stages, switch, float(one)) for one in t)}
        if len(found) > 1:
            raise TraceError("One batch can't hold times at which different denoisers or branches are in force.")
        return next(iter(found.values()))
    t = float(t)
    for stage, following in pairwise(stages):
        edge = switch if switch is not None and following.high < switch <= stage.low else None
        if t >= (stage.low if edge is None else edge):
            return stage
        if edge is None and t > following.high:
            raise TraceError(
                f"The pipeline changes its denoiser calls between t = {stage.low:g} and {following.high:g}, "
                f"and the trace does not tell which hold at t = {t:g}."
            )
    return stages[-1]


def _put(args: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """`args`, which is ours to change, with `value` at `path`; containers inside are shared with the condition."""
    first = str(path[0])
    args[first] = put(args.get(first), path[1:], value)
    return args
