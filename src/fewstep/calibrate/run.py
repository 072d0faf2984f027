"""The calibration run: the pipeline computes everything, and how its steps relate to each other is written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.calibrate.calibration import PREDICTION, Calibration, Gain, Trail
from fewstep.calibrate.gram import gram, sampled
from fewstep.calibrate.signature import effective_call, signature
from fewstep.calibrate.stack import Kept, StackWatch, Visit
from fewstep.calibrate.steps import sigma_at
from fewstep.models.model import Model
from fewstep.models.streams import Part

Tell = Callable[[str], None]
_MEASURING: ContextVar[bool] = ContextVar("measuring", default=False)
CALLBACKS = ("callback_on_step_end", "callback", "callback_steps")


def measuring() -> bool:
    """Whether the pipeline runs to be measured: a technique that leaves some of its tokens out computes all then."""
    return _MEASURING.get()


def quiet(doing: str) -> None:
    """Nobody wants to know."""


_TELL: ContextVar[Tell] = ContextVar("tell", default=quiet)


@contextmanager
def telling(tell: Tell) -> Iterator[None]:
    """While the block runs, `tell` is called with what a calibration or a search is doing, a few words each time."""
    token = _TELL.set(tell)
    try:
        yield
    finally:
        _TELL.reset(token)


def tell(doing: str) -> None:
    """Say what is being done to whoever listens: `telling`."""
    _TELL.get()(doing)


def calibrate(pipe: Any, *calls: Mapping[str, Any], gains: int = 0) -> Calibration:
    """Run the pipeline in full, once for each of `calls` (its keyword arguments; the prompt among them).

    `gains`: at so many noise levels it is measured, in a run each, what an error there grows to. `telling` hears of it
    before each run.

    All calls must agree in guidance and size: the signature is that of the first. Their generators are left as they
    were. Denoiser branches are kept apart. Nothing stays on the pipeline. What it keeps meanwhile is a sample of each
    tensor (`SAMPLE` entries), not the tensors.
    """
    model = Model(pipe)
    trails: list[Trail] = []
    for number, call in enumerate(calls):
        tell(f"run {number + 1} of {len(calls)}")
        recorder, outputs = Recorder(), Outputs()
        watch = StackWatch(model, recorder).install()
        try:
            with outputs.reaching(pipe.scheduler):
                run_quietly(pipe, call)
        finally:
            watch.remove()
        trails += [*recorder.trails(number), *outputs.trails(number)]
    steps = [effective_call(model, call).get("num_inference_steps") for call in calls]
    made_by = {"runs": len(calls), "steps": steps}
    measured = measure_gains(model, calls[0], trails, gains) if gains else ()
    return Calibration(signature(model, calls[0]), tuple(trails), measured, made_by)


def measure_gains(model: Model, call: Mapping[str, Any], trails: list[Trail], count: int) -> tuple[Gain, ...]:
    """At `count` steps, spread over the run and denser at its start: the output of the step before in the place of a
    step's own, and how far the latents then end from where they would have, over what that error was at its step."""
    (outputs,) = (trail for trail in trails if trail.what == "output" and trail.run == 0)
    full = run_quietly(model.pipe, call)
    total = len(outputs.sigmas)
    steps = sorted({1 + round((total - 2) * (k / max(count - 1, 1)) ** 1.5) for k in range(count)})
    changed = outputs.matrix
    ends = [*outputs.sigmas[1:], 0.0]
    found = []
    for number, step in enumerate(steps):
        tell(f"error at step {step + 1}, {number + 1} of {len(steps)}")
        watch = StackWatch(model, Once(step), Part("output")).install()
        try:
            ended = run_quietly(model.pipe, call)
        finally:
            watch.remove()
        size = changed[step, step] + changed[step - 1, step - 1] - 2 * changed[step, step - 1]
        made = abs(ends[step] - outputs.sigmas[step]) * float(size.clamp(min=0).sqrt())
        left = float((ended.float() - full.float()).square().mean().sqrt())
        found.append(Gain(outputs.sigmas[step], left / made if made > 0 else 1.0))
    return tuple(found)


class Once:
    """A policy that reuses at one step alone what the step before gave."""

    wants_signal = wants_head = False

    def __init__(self, step: int) -> None:
        self._step = step

    def start(self) -> list[Kept]:
        return []

    def reuse(self, visit: Visit, state: list[Kept]) -> Kept | None:
        return state[-1] if visit.step.index == self._step and state else None

    def computed(self, visit: Visit, state: list[Kept]) -> None:
        state[:] = [visit.residuals]


def run_quietly(pipe: Any, call: Mapping[str, Any], output_type: str = "latent") -> Any:
    """What the pipeline's call gives, latents unless told otherwise; nobody is told, no random state moves on.

    While it runs `measuring` is true.
    """
    own = {name: value for name, value in call.items() if name not in CALLBACKS}
    generators = _generators(call.get("generator"))
    states = [generator.get_state() for generator in generators]
    global_state, token = torch.get_rng_state(), _MEASURING.set(True)
    try:
        return pipe(**{**own, "output_type": output_type})[0]
    finally:
        _MEASURING.reset(token)
        torch.set_rng_state(global_state)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _generators(given: Any) -> list[torch.Generator]:
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]


@dataclass
class Rows:
    """Samples of one branch, a row a step."""

    sigmas: list[float] = field(default_factory=list)
    rows: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, sigma: float, **values: Tensor) -> None:
        self.sigmas.append(sigma)
        for what, value in values.items():
            self.rows.setdefault(what, []).append(value)

    def trails(self, denoiser: str, branch: int, run: int) -> list[Trail]:
        return [Trail.of(what, denoiser, branch, run, self.sigmas, gram(rows)) for what, rows in self.rows.items()]


class Recorder:
    """A policy of `StackWatch` that never skips, and keeps a sample of what the gates look at and caches keep."""

    wants_signal, wants_head = True, False

    def __init__(self) -> None:
        self._branches: dict[tuple[str, int], Rows] = {}

    def start(self) -> None:
        return None

    def reuse(self, visit: Visit, state: None) -> None:
        return None

    def computed(self, visit: Visit, state: None) -> None:
        assert visit.signal is not None
        assert visit.output is not None
        rows = self._branches.setdefault((visit.denoiser, visit.branch), Rows())
        rows.add(
            visit.step.sigma,
            signal=torch.cat([sampled(tensor) for tensor in visit.signal]),
            stack=sampled(_sum(visit.residuals)),
            hidden=sampled(visit.output),
        )

    def trails(self, run: int) -> Iterator[Trail]:
        for (denoiser, branch), rows in self._branches.items():
            yield from rows.trails(denoiser, branch, run)


def _sum(residuals: Kept) -> Tensor:
    """What all block lists together added to the hidden stream; of lists of different lengths the last one's."""
    hidden = [streams["hidden"] for streams in residuals.values()]
    return sum((one for one in hidden[:-1] if one.shape == hidden[-1].shape), hidden[-1])


class Outputs:
    """What reached the scheduler in one run: its model output at each step, and the noise that it began with."""

    def __init__(self) -> None:
        self._sigmas: list[float] = []
        self._rows: list[Tensor] = []
        self._noise: Tensor | None = None

    @contextmanager
    def reaching(self, scheduler: Any) -> Iterator[None]:
        """While the block runs, `scheduler.step` is listened to."""
        plain: Callable[..., Any] = scheduler.step

        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._noise is None:
                self._noise = sampled(sample)
            self._rows.append(sampled(model_output))
            result = plain(model_output, timestep, sample, *args, **kwargs)
            self._sigmas.append(sigma_at(scheduler, len(self._rows) - 1))
            return result

        scheduler.step = step
        try:
            yield
        finally:
            del scheduler.step

    def trails(self, run: int) -> list[Trail]:
        if self._noise is None:
            return []
        return [Trail.of("output", PREDICTION, 0, run, self._sigmas, gram([*self._rows, self._noise]))]
