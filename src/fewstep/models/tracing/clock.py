"""What a module is told of the time: the schedule's t in the module's own units, found from recorded pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fewstep.models.tracing.leaves import Path

Table = tuple[tuple[float, ...], tuple[float, ...]]  # (values of t, rising; timesteps there)


@dataclass(frozen=True)
class Clock:
    """timestep = rule(slope·g(t) + offset).

    g is t, or log t, or the place of t in a table (of sigma or of log sigma against the training timestep); rule leaves
    the number as it is, or cuts or rounds it to a whole one, as schedulers with integer timesteps do.
    """

    slope: float = 1.0
    offset: float = 0.0
    warp: str = "none"  # none, log, table, log table
    whole: str = "no"  # no, floor, round
    table: Table | None = None
    # At recorded times the recorded number: cutting to a whole one depends on the last bit of the scheduler's own t.
    recorded: Mapping[float, float] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, t: float) -> float:
        known = self.recorded.get(t)
        return float(self.of(torch.tensor(t, dtype=torch.float64))) if known is None else known

    def of(self, t: Tensor) -> Tensor:
        """The timestep at each t: float64, shape of `t`."""
        value = self.slope * self._warped(t.double()) + self.offset
        if self.whole == "floor":
            return (value + 1e-6).floor()  # 0.7·1000 is a hair below 700
        return value.round() if self.whole == "round" else value

    @cached_property
    def _rows(self) -> tuple[Tensor, Tensor]:
        assert self.table is not None
        places, values = (torch.tensor(row, dtype=torch.float64) for row in self.table)
        return places, values

    def _warped(self, t: Tensor) -> Tensor:
        if self.warp == "none":
            return t
        if self.warp == "log":
            return t.log()
        places, values = (row.to(t.device) for row in self._rows)
        if self.warp == "log table":
            places, t = places.log(), t.log()
        i = (torch.searchsorted(places, t) - 1).clamp(0, len(places) - 2)
        share = ((t - places[i]) / (places[i + 1] - places[i])).clamp(0, 1)
        return torch.lerp(values[i], values[i + 1], share)


def fit_clock(times: Sequence[float], timesteps: Sequence[float], table: Table | None, eps: float) -> Clock | None:
    """The clock that tells `timesteps` at `times`; None when no form does. `eps`: rounding of the recorded numbers."""
    recorded = dict(zip(times, timesteps, strict=True))
    if any(recorded[t] != told for t, told in zip(times, timesteps, strict=True)):
        return None  # two timesteps at one time
    warps: list[tuple[str, Callable[[float], float] | None]] = [("none", float)]
    if min(times) > 0:
        warps.append(("log", math.log))
    if table is not None:
        warps += [("table", None), ("log table", None)]
    for warp, g in warps:
        lines = [(1.0, 0.0)] if g is None else _lines([g(t) for t in times], timesteps)
        for whole in ("no", "floor", "round"):
            for slope, offset in lines:
                clock = Clock(slope, offset, warp, whole, table if g is None else None, recorded)
                if _fits(clock, eps):
                    return clock
    return None


def _lines(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """Slopes and offsets to try: the round ones that pipelines have, then the line through the two ends."""
    low, high = min(range(len(xs)), key=xs.__getitem__), max(range(len(xs)), key=xs.__getitem__)
    slope = (ys[high] - ys[low]) / (xs[high] - xs[low])
    rounded = [s * sign for s in (1.0, 1000.0, 0.001, 0.25, 250.0) for sign in (1, -1)]
    lines = [(s, offset) for s in rounded for offset in (0.0, 1.0, 1000.0)]
    return [*lines, (slope, ys[high] - slope * xs[high])]


def _all_whole(values: Sequence[float]) -> bool:
    return all(value == round(value) for value in values)


def _fits(clock: Clock, eps: float) -> bool:
    times, told = list(clock.recorded), list(clock.recorded.values())
    if clock.whole != "no" and not _all_whole(told):
        return False
    exact = replace(clock, whole="no").of(torch.tensor(times, dtype=torch.float64)).tolist()
    if clock.whole == "no":
        # In a table, a sigma rounded to float32 is off by up to a thousandth of a timestep.
        slack = [1e-3 if clock.table else 8 * eps * max(abs(number), 1e-3) for number in told]
        return all(abs(a - b) <= s for a, b, s in zip(exact, told, slack, strict=True))
    cut = math.floor if clock.whole == "floor" else round
    near = 1e-3  # the scheduler's t ends in the last bit of a float32, which decides where 1000·t is all but whole
    return all(cut(a - near) <= b <= cut(a + near) for a, b in zip(exact, told, strict=True))


@dataclass(frozen=True)
class TimeArg:
    """An argument that tells the module the time: one number, or a tensor filled with it."""

    path: Path
    clock: Clock
    shape: tuple[int, ...] | None  # of the recorded tensor; None for a plain number
    dtype: torch.dtype | None
    samples: int  # samples of the recorded call: a first axis of that length runs over samples

    def build(self, t: Tensor | float, samples: int, device: torch.device) -> Any:
        """The argument for a call over `samples` samples at t, of shape () or, repeated to fill them, (batch,).

        A time for each frame, (batch, frames), stays one; a causal module takes it.
        """
        if isinstance(t, Tensor) and t.dim() > 0:
            values = self.clock.of(t).to(device, self.dtype or torch.float32)
            values = values.repeat(samples // len(values), *[1] * (values.dim() - 1))
            if values.dim() == 2:
                return values
            tail = self.shape[1:] if self.shape else ()
            return values.view(-1, *[1] * len(tail)).expand(samples, *tail)
        value = self.clock(float(t))
        if self.shape is None:
            return value
        over_samples = bool(self.shape) and self.shape[0] == self.samples
        shape = (samples, *self.shape[1:]) if over_samples else self.shape
        return torch.full(shape, value, dtype=self.dtype, device=device)


def read_time(value: Any) -> float | None:
    """The one number that a timestep argument holds; None when it holds several or is no number."""
    if isinstance(value, Tensor):
        if value.numel() == 0 or value.is_complex() or not bool((value == value.flatten()[0]).all()):
            return None
        return float(value.flatten()[0])
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
