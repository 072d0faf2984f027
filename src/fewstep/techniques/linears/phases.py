"""Precision over steps: the first and last steps of a request run the layers as they were, the middle the quantized."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakSet

from torch import nn

from fewstep.calibrate.steps import Clock, Step, timestep_of
from fewstep.models.hooks import Hook, Hooks
from fewstep.models.model import Model

SWAPPED: WeakSet[nn.Module] = WeakSet()  # layers that other ones take the place of at some steps


@dataclass(frozen=True)
class Swap:
    """Two layers for one place, of which either may be there."""

    root: nn.Module
    path: str
    precise: nn.Module
    quantized: nn.Module

    def put(self, *, quantized: bool) -> None:
        self.root.set_submodule(self.path, self.quantized if quantized else self.precise)


def is_same_at_all_steps(layer: nn.Module) -> bool:
    """Whether no other layer takes the place of this one at some steps."""
    return layer not in SWAPPED


def is_precise(step: Step, ends: tuple[int, int]) -> bool:
    """Whether `step` is one of the first or last steps of its request."""
    return step.index < ends[0] or step.index >= step.total - ends[1]


class Phases:
    """Hooks on the denoisers that put the layers of a step in their places before it runs: outside compiled regions.

    Between calls the quantized layers are there.
    """

    def __init__(self, model: Model, swaps: list[Swap], ends: tuple[int, int], facts: dict[str, Any]) -> None:
        self._ends, self._facts, self._clock, self._quantized = ends, facts, Clock(model.pipe), True
        self._swaps = [swap for swap in swaps if any(swap.root is module for module in model.denoisers.values())]
        facts.update(steps_precise=0, steps_quantized=0)
        self._last = 0  # denoiser calls of this request with quantized layers
        self._hooks = Hooks(
            Hook(module, partial(self._call, inspect.signature(module.forward))) for module in model.denoisers.values()
        )

    def install(self) -> Phases:
        self._hooks.install()
        SWAPPED.update(swap.quantized for swap in self._swaps)
        return self

    def remove(self) -> None:
        self._hooks.remove()
        self.forget()
        SWAPPED.difference_update(swap.quantized for swap in self._swaps)

    def forget(self) -> None:
        """The next call begins a request."""
        self._put(quantized=True)
        self._clock.forget()

    def warnings(self) -> list[str]:
        if self._last:
            return []
        first, last = self._ends
        return [
            f"Quantize ran no step with quantized layers: this call has no more than the {first} first and {last} "
            "last steps, which 'precise_steps' keeps precise."
        ]

    def _call(self, signature: inspect.Signature, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = signature.bind_partial(*args, **kwargs).arguments
        step = self._clock.read(timestep_of(given))
        quantized = not is_precise(step, self._ends)
        self._last = quantized + (0 if self._clock.began else self._last)
        self._facts["steps_quantized" if quantized else "steps_precise"] += 1
        self._put(quantized=quantized)
        return forward(*args, **kwargs)

    def _put(self, *, quantized: bool) -> None:
        if quantized != self._quantized:
            for swap in self._swaps:
                swap.put(quantized=quantized)
            self._quantized = quantized
