"""From recorded calls to the forms that make them: every argument is x_t, a function of t, or the same at each step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import TraceError
from fewstep.models.tracing.clock import Clock, Table, TimeArg, fit_clock, read_time
from fewstep.models.tracing.cond import Cond, axes_of, split, spread
from fewstep.models.tracing.guide import Guidance, explains, fit_guidance
from fewstep.models.tracing.inputs import InputForm, Scaling, find_inputs
from fewstep.models.tracing.leaves import Path, get, name, same, walk, without
from fewstep.models.tracing.moments import Moment, fold_of
from fewstep.models.tracing.outputs import OutputForm, find_outputs
from fewstep.models.tracing.record import Call, Step
from fewstep.models.tracing.stages import CallForm, Stage
from fewstep.models.tracing.timeline import Timeline


@dataclass(frozen=True)
class Seen:
    """A recorded call with the time it was made at and how x_t stands in it."""

    call: Call
    t: float
    x: InputForm
    scale: float

    @property
    def signature(self) -> Any:
        """What must be alike for two calls to be the same call at other times."""
        return self.call.name, tuple(sorted(self.call.args)), self.x

    def leaves(self) -> dict[Path, Any]:
        """Every value in the arguments but x_t."""
        depth = len(self.x.path)
        found = {path: value for path, value in walk(dict(self.call.args)) if path[:depth] != self.x.path}
        rest = self.x.rest(get(self.call.args, self.x.path))
        return found if rest is None else {**found, (self.x.rest_name,): rest}


def explain(moments: Sequence[Moment], timeline: Timeline, table: Table | None) -> tuple[tuple[Stage, ...], Cond]:
    """The stages of a recorded run and its conditions.

    Raises:
        TraceError: an argument, an output or the guidance that is not explained.
    """
    if len(set(timeline.starts)) < 3:
        raise TraceError("A trace needs at least 3 different times, to check on one what it found on others.")
    steps = [[_see(call, m.x, t) for call in m.calls] for m, t in zip(moments, timeline.starts, strict=True)]
    groups = [list(group) for _, group in groupby(range(len(steps)), key=lambda i: [s.signature for s in steps[i]])]
    clocks = _clocks([[steps[i] for i in group] for group in groups], table)
    scalings = _scalings(steps)
    stages, conds = [], []
    for group in groups:
        guidance, output = _guidance([moments[i] for i in group], [steps[i] for i in group], timeline.sign)
        calls = _call_forms(steps[group[0]], guidance, output, clocks, scalings)
        stages.append(Stage(timeline.starts[group[0]], timeline.starts[group[-1]], calls, guidance))
        conds.append(_cond([s.call for s in steps[group[0]]], calls, len(moments[0].x)))
    return tuple(stages), _united(conds)


def read_condition(step: Step, stages: Sequence[Stage], axes: Mapping[Path, int], fold: int, sign: float) -> Cond:
    """The conditions in the first recorded step of another call, which must be made as the traced one was.

    Raises:
        TraceError: other calls or arguments, another guidance, or conditions that only a later step would show.
    """
    stage, x = stages[0], fold_of(step.sample, fold)
    traced = [call.name for call in stage.calls]
    if [call.name for call in step.calls] != traced:
        raise TraceError(f"With these arguments the pipeline does not make the traced calls of {', '.join(traced)}.")
    for call, form in zip(step.calls, stage.calls, strict=True):
        if not any(
            found.path == form.x.path and found.repeats == form.x.repeats for found, _ in find_inputs(call.args, x)
        ):
            raise TraceError(
                f"With these arguments {form.name} is not given x_t in {name(form.x.path)} as in the trace."
            )
    outputs: dict[str, Tensor] = {}
    for call, form in zip(step.calls, stage.calls, strict=True):
        outputs |= dict(zip(form.branches, form.resized(x).take(call.output).chunk(len(form.branches)), strict=True))
    if not explains(stage.guidance, outputs, sign * fold_of(step.model_output, fold)):
        raise TraceError(f"With these arguments the guidance is not the traced one, {dict(stage.guidance.weights)}.")
    cond = _cond(step.calls, stage.calls, len(x), axes)
    unseen = {branch for other in stages for call in other.calls for branch in call.branches} - set(cond.branches)
    if unseen:
        raise TraceError(f"The first step does not show the conditions of {', '.join(sorted(unseen))}.")
    return cond


def _see(call: Call, x: Tensor, t: float) -> Seen:
    found = list(find_inputs(call.args, x))
    if len(found) != 1:
        where = " and ".join(name(form.path) for form, _ in found)
        have = f"it stands in {where}" if found else "none of them is the latents, scaled, repeated or joined"
        raise TraceError(f"Can't tell which argument of {call.name} is x_t: {have}.")
    return Seen(call, t, *found[0])


def _clocks(groups: Sequence[Sequence[Sequence[Seen]]], table: Table | None) -> dict[Path, Clock]:
    """A clock for each argument that changes over steps."""
    changing: dict[Path, str] = {}
    for group in groups:
        for calls in zip(*group, strict=True):  # the same call at each step
            changing |= dict.fromkeys(_changing(calls), calls[0].call.name)
    leaves = [(seen.t, seen.leaves()) for group in groups for step in group for seen in step]
    clocks = {}
    for path, owner in changing.items():
        told = [(t, found[path]) for t, found in leaves if path in found]
        clocks[path] = _clock(path, owner, [t for t, _ in told], [value for _, value in told], table)
    return clocks


def _changing(calls: Sequence[Seen]) -> Iterator[Path]:
    first, others = calls[0].leaves(), [seen.leaves() for seen in calls[1:]]
    for other in others:
        if other.keys() != first.keys():
            odd = next(iter(other.keys() ^ first.keys()))
            raise TraceError(f"The argument {name(odd)} of {calls[0].call.name} is there at some steps only.")
    for path, value in first.items():
        if not all(same(value, other[path]) for other in others):
            yield path


def _clock(path: Path, owner: str, times: Sequence[float], values: Sequence[Any], table: Table | None) -> Clock:
    numbers = [read_time(value) for value in values]
    known = [number for number in numbers if number is not None]
    dtypes = [v.dtype for v in values if isinstance(v, Tensor) and v.is_floating_point()]
    eps = max((torch.finfo(dtype).eps for dtype in dtypes), default=torch.finfo(torch.float32).eps)
    clock = fit_clock(times, known, table, eps) if len(known) == len(values) else None
    if clock is None:
        raise TraceError(
            f"The argument {name(path)} of {owner} changes over the steps in a way that the time does not explain."
        )
    return clock


def _scalings(steps: Sequence[Sequence[Seen]]) -> dict[str, Scaling]:
    """For each component how x_t is scaled, as a function of t."""
    seen = [s for step in steps for s in step]
    found = {}
    for owner in {s.call.name for s in seen}:
        own = [s for s in seen if s.call.name == owner]
        tolerance = 10 * torch.finfo(own[0].x.dtype or torch.float32).eps
        scaling = Scaling.fit([s.t for s in own], [s.scale for s in own], tolerance)
        if scaling is None:
            raise TraceError(f"The latents are scaled for {owner} in a way that the time does not explain.")
        found[owner] = scaling
    return found


def _guidance(moments: Sequence[Moment], steps: Sequence[Sequence[Seen]], sign: float) -> tuple[Guidance, OutputForm]:
    """How the branches are combined, with the form of the output in which they are found."""
    first, shape = steps[0][0], moments[0].x.shape
    inputs = [sign * moment.model_output for moment in moments]
    refusal = TraceError(f"No output of {first.call.name} has the shape of the latents, {tuple(shape)}.")
    for form in find_outputs(first.call.output, shape[0] * first.x.repeats, shape[1:]):
        outputs = [[branch for s in step for branch in form.take(s.call.output).chunk(s.x.repeats)] for step in steps]
        try:
            return fit_guidance(outputs, inputs), form
        except TraceError as error:
            refusal = error
    raise refusal


def _call_forms(
    step: Sequence[Seen],
    guidance: Guidance,
    output: OutputForm,
    clocks: Mapping[Path, Clock],
    scalings: Mapping[str, Scaling],
) -> tuple[CallForm, ...]:
    names, calls = iter(guidance.weights), []
    for seen in step:
        branches = tuple(next(names) for _ in range(seen.x.repeats))
        samples = len(seen.x.flat(get(seen.call.args, seen.x.path)))
        leaves = seen.leaves()
        times = tuple(_time_arg(path, clock, leaves[path], samples) for path, clock in clocks.items() if path in leaves)
        x = replace(seen.x, scaling=scalings[seen.call.name])
        calls.append(CallForm(seen.call.name, branches, x, times, output))
    return tuple(calls)


def _time_arg(path: Path, clock: Clock, value: Any, samples: int) -> TimeArg:
    if isinstance(value, Tensor):
        return TimeArg(path, clock, tuple(value.shape), value.dtype, samples)
    return TimeArg(path, clock, None, None, samples)


def _cond(calls: Sequence[Call], forms: Sequence[CallForm], batch: int, axes: Mapping[Path, int] | None = None) -> Cond:
    branches: dict[str, Any] = {}
    found: dict[Path, int] = {}
    for call, form in zip(calls, forms, strict=True):
        args, samples = _conditions(call, form), batch * len(form.branches)
        if axes is not None:
            args = spread(args, axes, batch)
        own = axes_of(args, samples)
        if axes is not None:  # what runs over samples was settled by the trace, where the batch was small
            own = {path: axis for path, axis in own.items() if axes.get(path) == axis}
        found |= own
        branches |= dict(zip(form.branches, split(args, own, len(form.branches)), strict=True))
    return Cond(branches, found, batch)


def _conditions(call: Call, form: CallForm) -> dict[str, Any]:
    """The call's arguments without x_t and the times."""
    args = dict(call.args)
    rest = form.x.rest(get(args, form.x.path))
    for path in (form.x.path, *(time.path for time in form.times)):
        args = without(args, path)
    return args if rest is None else {**args, form.x.rest_name: rest}


def _united(conds: Sequence[Cond]) -> Cond:
    """The conditions of all stages as one: a branch has the same in each."""
    branches: dict[str, Any] = {}
    axes: dict[Path, int] = {}
    for cond in conds:
        for branch, args in cond.branches.items():
            if not same(branches.setdefault(branch, args), args):
                raise TraceError(f"The conditions of the {branch} branch change over the steps.")
        axes |= cond.axes
    return Cond(branches, axes, conds[0].batch)
