"""Running a pipeline with a recorder on its denoisers and its scheduler, and leaving no mark on it."""

from __future__ import annotations

import copy
import functools
import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.errors import TraceError
from fewstep.models.hooks import wrapped
from fewstep.models.tracing.leaves import Snapshots, walk


@dataclass(frozen=True)
class Call:
    """One call of a denoiser: its component's name, its arguments by name, and what it returned."""

    name: str
    args: Mapping[str, Any]
    output: Any


@dataclass(frozen=True)
class Step:
    """One `scheduler.step`: the denoiser calls since the one before, its arguments by name, and the sample it returned.

    `result` is None in a run that was stopped before the scheduler stepped.
    """

    calls: tuple[Call, ...]
    args: Mapping[str, Any]
    result: Tensor | None

    @property
    def sample(self) -> Tensor:
        sample: Tensor = self.args["sample"]
        return sample

    @property
    def model_output(self) -> Tensor:
        output: Tensor = self.args["model_output"]
        return output

    @property
    def timestep(self) -> float:
        return float(self.args["timestep"])


@dataclass(frozen=True)
class Tape:
    """A recorded run. `scheduler` is a copy of the pipeline's as it stood before the first step."""

    steps: tuple[Step, ...]
    scheduler: Any


class _Enough(Exception):
    """Thrown through the pipeline's own call to end it early."""


StandIn = Callable[[int, Mapping[str, Any]], Any]  # the number of a call in its step, its arguments -> an output


def record(
    pipe: Any,
    denoisers: Mapping[str, nn.Module],
    call: Mapping[str, Any],
    first_only: bool = False,
    stand_in: StandIn | None = None,
) -> Tape:
    """Run `pipe(**call)` and write down every denoiser call and scheduler step.

    The pipeline is afterwards what it was: hooks off, scheduler and attributes restored, random generators wound back;
    also when its call raises. With `first_only` the run ends when the first step is about to be taken. What `stand_in`
    returns is taken for the denoiser's output, which is not run then; None runs it.

    Raises:
        TraceError: no scheduler, no denoiser, or a call in a form that can't be recorded.
    """
    if getattr(pipe, "scheduler", None) is None or not denoisers:
        raise TraceError(f"{type(pipe).__name__} has no scheduler and denoiser that a trace could follow.")
    recorder = _Recorder(type(pipe).__name__, first_only, stand_in)
    with _untouched(pipe, call), ExitStack() as stack:
        for name, module in denoisers.items():
            stack.enter_context(wrapped(module, recorder.on_call(name, _signature(module))))
        scheduler = pipe.scheduler
        vars(scheduler)["step"] = recorder.on_step(scheduler)
        try:
            with torch.no_grad():
                pipe(**call)
        except _Enough:
            if hasattr(pipe, "maybe_free_model_hooks"):
                pipe.maybe_free_model_hooks()
    return recorder.tape()


class _Recorder:
    def __init__(self, pipeline: str, first_only: bool, stand_in: StandIn | None) -> None:
        self.pipeline, self.first_only, self.stand_in = pipeline, first_only, stand_in
        self.snapshots = Snapshots()
        self.pending: list[Call] = []
        self.steps: list[Step] = []
        self.scheduler: Any = None

    def on_call(self, name: str, signature: inspect.Signature) -> Callable[..., Any]:
        def recorded(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            taken = self.snapshots.take(_named(signature, name, args, kwargs))
            output = None if self.stand_in is None else self.stand_in(len(self.pending), taken)
            if output is None:
                output = forward(*args, **kwargs)
            self.pending.append(Call(name, taken, self.snapshots.take(output)))
            return output

        return recorded

    def on_step(self, scheduler: Any) -> Callable[..., Any]:
        step = scheduler.step
        signature = inspect.signature(step)

        @functools.wraps(step)  # pipelines look at its signature
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if self.scheduler is None:
                self.scheduler = _copied(scheduler)
            taken = self.snapshots.take(_named(signature, "scheduler.step", args, kwargs))
            self._check(taken)
            calls, self.pending = tuple(self.pending), []
            if self.first_only:
                self.steps.append(Step(calls, taken, None))
                raise _Enough
            result = step(*args, **kwargs)
            previous = result[0] if isinstance(result, tuple) else result.prev_sample
            self.steps.append(Step(calls, taken, self.snapshots.take(previous)))
            return result

        return recorded

    def _check(self, taken: Mapping[str, Any]) -> None:
        for name in ("model_output", "sample"):
            if not isinstance(taken.get(name), Tensor):
                raise TraceError(f"The scheduler of {self.pipeline} takes no tensor {name!r} in its step.")
        if taken.get("timestep") is None:
            raise TraceError(f"The scheduler of {self.pipeline} takes no 'timestep' in its step.")

    def tape(self) -> Tape:
        if not self.steps:
            raise TraceError(f"{self.pipeline} never called the step of its scheduler.")
        if self.pending:
            raise TraceError(f"{self.pipeline} called {self.pending[0].name} after its scheduler's last step.")
        return Tape(tuple(self.steps), self.scheduler)


def _signature(module: nn.Module) -> inspect.Signature:
    return inspect.signature(getattr(module, "_orig_mod", module).forward)  # under a compiled module is the real one


def _named(signature: inspect.Signature, owner: str, args: Any, kwargs: Any) -> dict[str, Any]:
    """Every argument under its name, those in **kwargs too."""
    named = dict(signature.bind(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL and parameter.name in named:
            raise TraceError(f"{owner} takes *{parameter.name}, so its arguments have no names to trace them by.")
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(parameter.name, {})
    return named


def _copied(scheduler: Any) -> Any:
    recorded = vars(scheduler).pop("step")
    try:
        return copy.deepcopy(scheduler)
    finally:
        vars(scheduler)["step"] = recorded


@contextmanager
def _untouched(pipe: Any, call: Mapping[str, Any]) -> Iterator[None]:
    """The run sees copies of the scheduler's state; the originals come back after it, and so do generators' states."""
    scheduler, attributes, state = pipe.scheduler, dict(vars(pipe)), vars(pipe.scheduler)
    own = [leaf for _, leaf in walk(dict(call)) if isinstance(leaf, torch.Generator)]
    generators = [(generator, generator.get_state()) for generator in own]
    chance, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=_devices(pipe)):
            scheduler.__dict__ = copy.deepcopy(state)
            vars(pipe)["_progress_bar_config"] = {**getattr(pipe, "_progress_bar_config", {}), "disable": True}
            yield
    finally:
        scheduler.__dict__ = state
        vars(pipe).clear()
        vars(pipe).update(attributes)
        for generator, before in generators:
            generator.set_state(before)
        random.setstate(chance)
        np.random.set_state(numbers)


def _devices(pipe: Any) -> list[torch.device]:
    device = getattr(pipe, "_execution_device", torch.device("cpu"))
    return [device] if device.type == "cuda" else []
