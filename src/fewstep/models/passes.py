"""What attention and blocks do in one call of a denoiser: note everything, compute all tokens, or some of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from fewstep.models.gateway import Pass, Run, Slot
from fewstep.models.streams import BlockList, arguments, hidden_name, unpack, with_streams

Kept = dict[Slot, tuple[Tensor, Tensor]]  # keys and values of every attention of one guidance branch


@dataclass(frozen=True)
class Rows:
    """Rows of a sequence: all of its text, and the active tokens of the picture.

    Attributes:
        active: which of the picture's own tokens, rising, (batch, k); (1, k) for all samples of a batch alike.
        tokens: how many the picture has.
    """

    active: Tensor
    tokens: int

    def of(self, length: int, first: bool) -> Tensor:
        """Their places in a sequence of `length` where the picture's tokens stand `first`, else last, (batch, rows)."""
        text = length - self.tokens
        if not text:
            return self.active
        others = torch.arange(text, device=self.active.device).expand(len(self.active), -1)
        return torch.cat([self.active, self.tokens + others] if first else [others, text + self.active], 1)


@dataclass(frozen=True)
class Layout:
    """Where the picture's tokens stand in one block list, first or last: in its hidden stream, and in the sequence of
    each attention of a block, by its path in the block, that sees them as keys."""

    hidden_first: bool
    keys_first: dict[Slot, bool]


@dataclass
class Counting:
    """Tells the calls of one attention module in one forward apart."""

    calls: Counter[str] = field(default_factory=Counter, kw_only=True)

    def slot(self, path: str) -> Slot:
        self.calls[path] += 1
        return path, self.calls[path]


@dataclass
class Record(Counting):
    """Notes what every attention sees and says; `answers` are given in the place of its own outputs."""

    kept: Kept = field(default_factory=dict)
    outputs: dict[Slot, Tensor] = field(default_factory=dict)
    answers: dict[Slot, Tensor] = field(default_factory=dict)

    def attend(self, slot: Slot, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, run: Run) -> Tensor:
        self.kept[slot] = (key, value)
        self.outputs[slot] = self.answers[slot] if slot in self.answers else run(query, key, value, mask)
        return self.outputs[slot]


@dataclass
class Dense(Counting):
    """Everything is computed, and the keys and values that picture tokens have are kept."""

    kept: Kept
    layouts: dict[str, Layout]

    def first(self, slot: Slot) -> bool | None:
        """Whether the picture's tokens stand first among the keys, or last; None: they are not among them."""
        path, within = slot[0].split(":")
        return self.layouts[path.rpartition(".")[0]].keys_first.get((within, slot[1]))

    def attend(self, slot: Slot, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, run: Run) -> Tensor:
        if self.first(slot) is not None:
            self.kept[slot] = (key.clone(), value.clone())  # their memory may be another's soon
        return run(query, key, value, mask)


class BlockPass(Pass, Protocol):
    """A pass that has its own way with blocks too."""

    def block(self, one: BlockList, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The output of a list's block, whose own forward is given, for these arguments."""


Sequences = dict[int, Tensor]  # length of a sequence -> which of its rows to take, (batch or 1, rows)


@dataclass
class Taken:
    """The rows taken of what has one for each token, like rotary embeddings; every block is given the same ones."""

    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # by the id of a tensor: it, and its rows

    def of(self, value: Any, sequences: Sequences) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(self.of(part, sequences) for part in value)
        if not isinstance(value, Tensor) or (axis := token_axis(value, sequences)) is None:
            return value
        if id(value) not in self.kept:
            rows = sequences[value.shape[axis]]
            self.kept[id(value)] = (value, value[rows[0]] if axis == 0 else take(value, rows))
        return self.kept[id(value)][1]


@dataclass
class Some(Dense):
    """The active tokens are computed, and see the kept keys and values of the others."""

    rows: Rows
    entered: dict[str, Tensor] = field(default_factory=dict)  # block list -> the hidden stream that came
    taken: Taken = field(default_factory=Taken)

    def attend(self, slot: Slot, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, run: Run) -> Tensor:
        first = self.first(slot)
        if first is None:
            return run(query, key, value, mask)
        keys, values = self.kept[slot]
        rows = self.rows.of(keys.shape[1], first)
        put(keys, rows, key)
        put(values, rows, value)
        if mask is not None and mask.ndim > 2 and mask.shape[-2] == keys.shape[1]:
            mask = take(mask.transpose(1, -2), rows).transpose(1, -2)
        return run(query, keys, values, mask)

    def block(self, one: BlockList, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A block's own forward, on the active tokens."""
        given = arguments(one.modules[index], args, kwargs)
        hidden = hidden_name(given)
        if index == 0:
            self.entered[one.path] = given[hidden]
        came = self.entered[one.path]
        stream = self.rows.of(came.shape[1], self.layouts[one.path].hidden_first)
        sequences = self._sequences(one, index, came.shape[1])
        names = {id(value): name for name, value in given.items()}

        def some(value: Any) -> Any:
            name = names.get(id(value), "")
            if name == hidden:
                return take(value, stream) if index == 0 else value
            return value if name.startswith("encoder") else self.taken.of(value, sequences)

        output = forward(*map(some, args), **{name: some(value) for name, value in kwargs.items()})
        if index < len(one.modules) - 1:
            return output
        places = one.outputs[index]
        left = put(came.clone(), stream, unpack(output, places)["hidden"])
        return with_streams(output, places, {"hidden": left})

    def _sequences(self, one: BlockList, index: int, length: int) -> Sequences:
        """Of those that have the picture's tokens among them."""
        layout, path = self.layouts[one.path], f"{one.path}.{index}"
        keys = {
            self.kept[f"{path}:{within}", call][0].shape[1]: first
            for (within, call), first in layout.keys_first.items()
        }
        firsts = {**keys, length: layout.hidden_first, self.rows.tokens: True}
        return {length: self.rows.of(length, first) for length, first in firsts.items()}


def token_axis(value: Tensor, lengths: Container[int]) -> int | None:
    """The axis along which a tensor has something for each token of a sequence: 1, or 0 where all samples of a batch
    share it, as (tokens, features). None: it has no axis of such a length."""
    axes = (0,) if value.ndim == 2 else (1, 0) if value.ndim > 2 else ()
    return next((axis for axis in axes if value.shape[axis] in lengths), None)


def take(tensor: Tensor, rows: Tensor) -> Tensor:
    """The rows, (batch or 1, k), of (batch or 1, tokens, …)."""
    if len(rows) == 1:
        return tensor.index_select(1, rows[0])
    if len(tensor) == 1:
        return tensor[0][rows]
    return tensor[torch.arange(len(rows), device=rows.device)[:, None], rows]


def put(tensor: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """`values` in the rows, (batch or 1, k), of (batch, tokens, …), in place."""
    if len(rows) == 1:
        return tensor.index_copy_(1, rows[0], values)
    tensor[torch.arange(len(rows), device=rows.device)[:, None], rows] = values
    return tensor
