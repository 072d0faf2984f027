"""The streams of tokens that go through a denoiser's lists of blocks: what of them a block is given, and gives back."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

from torch import Tensor, nn

from fewstep.models.blocks import Block
from fewstep.models.families import TENSOR, Outputs
from fewstep.models.model import Model

Streams = dict[str, Tensor]  # "hidden", and "encoder" where the blocks pass text on -> (batch, tokens, features)


@dataclass(frozen=True)
class Part:
    """What of a denoiser can be skipped.

    Attributes:
        scope: its whole `output`; its `blocks`; the `attention` in these; or, as `guidance`, the calls of all branches
            but the first, of which then only the difference to the first is kept.
        front, back: with `blocks` and `attention`: the first and last blocks that always run.
    """

    scope: str = "blocks"
    front: int = 0
    back: int = 0


SCOPES = ("output", "blocks", "attention", "guidance")
ALL_BLOCKS = Part()


class BlockList:
    """One ModuleList of repeated blocks."""

    def __init__(self, path: str, blocks: list[Block]) -> None:
        self.path, self.modules = path, [block.module for block in blocks]
        self.outputs = [block.outputs or TENSOR for block in blocks]
        self.start, self.stop = 0, len(blocks)  # of the blocks that can be skipped

    def streams(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streams:
        """The token streams among a block's arguments."""
        given = arguments(self.modules[index], args, kwargs)
        found = {"hidden": given[hidden_name(given)]}
        if self.outputs[index].encoder is not None:
            found["encoder"] = given["encoder_hidden_states"]
        return found


def takes_apart(output: Any, places: Outputs) -> bool:
    """Whether a block's output has a tensor where its hidden stream should be."""
    if places.hidden is None:
        return isinstance(output, Tensor)
    return isinstance(output, tuple) and len(output) > places.hidden and isinstance(output[places.hidden], Tensor)


def unpack(output: Any, places: Outputs) -> Streams:
    """The token streams in what a block returned; a stream that ends there (None) is left out."""
    if places.hidden is None:
        return {"hidden": output}
    found = {"hidden": output[places.hidden]}
    if places.encoder is not None and output[places.encoder] is not None:
        found["encoder"] = output[places.encoder]
    return found


def pack(streams: Streams, places: Outputs) -> Any:
    """The inverse of `unpack`."""
    if places.hidden is None:
        return streams["hidden"]
    size = max(places.hidden, -1 if places.encoder is None else places.encoder) + 1
    packed: list[Tensor | None] = [None] * size
    packed[places.hidden] = streams["hidden"]
    if places.encoder is not None:
        packed[places.encoder] = streams.get("encoder")
    return tuple(packed)


def with_streams(output: Any, places: Outputs, streams: Streams) -> Any:
    """What a block returned, with these streams in the place of its own."""
    if places.hidden is None:
        return streams["hidden"]
    told = {getattr(places, name): stream for name, stream in streams.items()}
    return tuple(told.get(place, part) for place, part in enumerate(output))


def block_lists(model: Model, name: str, part: Part = ALL_BLOCKS) -> list[BlockList]:
    """The block lists of one denoiser, in the order of its module tree, with what of each `part` lets be skipped."""
    groups = groupby(model.blocks(name), key=lambda block: block.path.rpartition(".")[0])
    lists = [BlockList(path, list(blocks)) for path, blocks in groups]
    stop, before = sum(len(one.modules) for one in lists) - part.back, 0
    for one in lists:
        size = len(one.modules)
        one.start, one.stop = min(max(part.front - before, 0), size), min(max(stop - before, 0), size)
        before += size
    return lists


def arguments(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A block's arguments by the names of its own forward."""
    return {**dict(zip(_parameters(type(block).forward), args, strict=False)), **kwargs}


@cache
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]


def hidden_name(given: dict[str, Any]) -> str:
    """Which of a block's arguments is its hidden input: the one of that name, else the first."""
    return "hidden_states" if "hidden_states" in given else next(iter(given))
