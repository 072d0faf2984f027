"""The denoiser calls of real runs, kept so that they can be made again with something changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.calibrate.run import run_quietly
from fewstep.calibrate.steps import EVERY_STEP
from fewstep.models.hooks import wrapped
from fewstep.models.model import Model

KEPT = 8  # calls of each denoiser in each run, evenly over it


@dataclass(frozen=True)
class Call:
    """One call of a denoiser: its arguments, and the first tensor that came out."""

    denoiser: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Tensor

    def again(self, module: nn.Module) -> Tensor:
        """What comes out now."""
        with torch.no_grad():
            return first_tensor(module(*self.args, **self.kwargs))


def record(model: Model, *calls: Mapping[str, Any], kept: int = KEPT) -> list[Call]:
    """Run the pipeline once for each of `calls` (its keyword arguments) and keep `kept` calls of each denoiser."""
    found: list[Call] = []
    for call in calls:
        seen: dict[str, list[Call]] = {name: [] for name in model.denoisers}
        with ExitStack() as hooks:
            for name, module in model.denoisers.items():
                hooks.enter_context(wrapped(module, partial(_note, name, seen[name])))
            run_quietly(model.pipe, call)
        found += [one for several in seen.values() for one in spread(several, kept)]
    return found


def largest_inputs(model: Model, linears: Mapping[str, nn.Linear], calls: Iterable[Call]) -> dict[str, Tensor]:
    """max|x| of each input feature of the named layers over recorded calls, (in,)."""
    largest: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, linear in linears.items():
            hooks.enter_context(wrapped(linear, partial(_range, largest, name)))
        for call in calls:
            call.again(model.denoisers[call.denoiser])
    return largest


def spread(items: list[Call], count: int) -> list[Call]:
    """At most `count` of the items, evenly over them, the first and last among them."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


def first_tensor(output: Any) -> Tensor:
    tensor: Tensor = output if isinstance(output, Tensor) else output[0]
    return tensor


def _note(name: str, seen: list[Call], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # Latents are cloned, for samplers may write into them; conditioning stays the same tensors in all calls.
    own = {key: _clone(value) if key in EVERY_STEP else value for key, value in kwargs.items()}
    positional = tuple(map(_clone, args))
    output = forward(*args, **kwargs)
    seen.append(Call(name, positional, own, first_tensor(output).detach().clone()))
    return output


def _clone(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _range(largest: dict[str, Tensor], name: str, forward: Callable[..., Any], x: Tensor) -> Any:
    now = x.detach().float().abs().flatten(0, -2).amax(0)
    largest[name] = torch.maximum(largest[name], now) if name in largest else now
    return forward(x)
