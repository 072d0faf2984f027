"""The signal that foretells how much a stack's output will change: the first block's modulated input (2411.19108)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from fewstep.calibrate.curve import relative_change
from fewstep.models.hooks import wrapped
from fewstep.models.streams import arguments, hidden_name

# What blocks call the embedding of the time.
TIME_EMBEDDINGS = ("temb", "timestep_proj", "timestep", "time_emb", "adaln_input", "emb", "modulation")


@dataclass(frozen=True)
class Signal:
    """How to get the signal of one block from its arguments.

    `norm` is the name of the block's first norm where that modulates its input by the time, `takes` the names of the
    block's arguments that it is called with, by position and by keyword. Without such a norm the signal is the block's
    hidden input together with its time embedding.
    """

    norm: str | None
    takes: tuple[str, ...]
    takes_named: tuple[tuple[str, str], ...] = ()

    @classmethod
    def learn(cls, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Signal:
        """Run the block's plain forward once and see how it calls its first norm."""
        given = arguments(block, args, kwargs)
        calls: list[Signal | None] = []
        with ExitStack() as spies:
            for name, child in block.named_children():
                if "norm" in name:
                    spies.enter_context(wrapped(child, partial(_spy, calls, name, given)))
            type(block).forward(block, *args, **kwargs)
        return calls[0] if calls and calls[0] else _plain(given)

    def __call__(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
        given = arguments(block, args, kwargs)
        if self.norm is None:
            return tuple(given[name] for name in self.takes)
        named = {name: given[source] for name, source in self.takes_named}
        output = block.get_submodule(self.norm)(*(given[name] for name in self.takes), **named)
        return (output if isinstance(output, Tensor) else output[0],)


def change(new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> float:
    """The mean relative change over the tensors of a signal; inf when their shapes differ."""
    if [tensor.shape for tensor in new] != [tensor.shape for tensor in old]:
        return float("inf")
    return sum(relative_change(a, b) for a, b in zip(new, old, strict=True)) / len(new)


def _spy(
    calls: list[Signal | None],
    name: str,
    given: dict[str, Any],
    forward: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Note a norm's call; as None when it is not called with arguments of the block, or with one alone: unmodulated."""
    takes = [_source(value, given) for value in args]
    named = {key: _source(value, given) for key, value in kwargs.items()}
    sources = [*takes, *named.values()]
    if None in sources or len(sources) < 2:
        calls.append(None)
    else:
        calls.append(Signal(name, tuple(map(str, takes)), tuple((key, str(value)) for key, value in named.items())))
    return forward(*args, **kwargs)


def _source(value: Any, given: dict[str, Any]) -> str | None:
    return next((name for name, argument in given.items() if argument is value), None)


def _plain(given: dict[str, Any]) -> Signal:
    """The hidden input, and the time embedding where the block is given one."""
    hidden = hidden_name(given)
    time = next(
        (name for name in TIME_EMBEDDINGS if isinstance(given.get(name), Tensor) and given[name].is_floating_point()),
        None,
    )
    return Signal(None, (hidden, time) if time else (hidden,))
