"""What a chunk of a video sees of the past: the rule, and the keys and values that rolling generation keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import InputError, bad_value
from fewstep.models.gateway import Slot


@dataclass(frozen=True)
class Chunks:
    """How the latent frames of a video come one after another.

    Attributes:
        size: frames in a chunk; they see each other.
        window: frames that a chunk sees, itself and the sink among them; None: all before it.
        sink: first frames of the video that every chunk sees (arXiv 2309.17453).

    Raises:
        InputError: sizes that are not whole chunks, or a window without room for chunk and sink.
    """

    size: int = 1
    window: int | None = None
    sink: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(bad_value("chunk", "a causal student", "at least 1", self.size))
        if self.sink < 0 or self.sink % self.size:
            raise InputError(bad_value("sink", "a causal student", f"0 or a multiple of {self.size}", self.sink))
        least = self.size + self.sink
        if self.window is not None and (self.window < least or self.window % self.size):
            right = f"a multiple of {self.size}, at least {least}"
            raise InputError(bad_value("window", "a causal student", right, self.window))

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> Chunks:
        """From JSON values.

        Raises:
            InputError: an unknown key, or a value that is no whole number.
        """
        known = [f.name for f in fields(cls)]
        if unknown := set(values) - set(known):
            raise InputError(bad_value(f"causal.{min(unknown)}", where, f"one of {', '.join(known)}", min(unknown)))
        for name, value in values.items():
            if type(value) is not int and not (name == "window" and value is None):
                raise InputError(bad_value(f"causal.{name}", where, "a whole number", value))
        return cls(**values)

    def seen(self, frames: int) -> Tensor:
        """Whether frame i sees frame j: bool (frames, frames)."""
        i, j = torch.arange(frames)[:, None], torch.arange(frames)[None]
        end = (i // self.size + 1) * self.size
        near = j < end if self.window is None else (j < end) & (j >= end - (self.window - self.sink))
        return near | ((j < self.sink) & (j < end))


@dataclass
class Window:
    """Keys and values of the frames that the next chunk sees, by attention, each (batch, tokens, heads, features).

    Keys hold the rotation of their place in the window. When the oldest chunk leaves, those that stay are turned back
    by its frames, all but the sink's: the newest chunk always has the same distance to each of them.

    Attributes:
        frames: that it holds.
        back: that turn, complex (1, 1, 1, features / 2): what pairs of neighbouring features are multiplied by.
    """

    chunks: Chunks
    frames: int = 0
    back: Tensor | None = None
    _kept: dict[Slot, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _new: dict[Slot, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for pair in self._kept.values() for part in pair)

    def begin(self) -> None:
        """A call begins: what an earlier one noted and did not advance is forgotten."""
        self._new = {}

    def joined(self, slot: Slot, key: Tensor, value: Tensor, *, noted: bool = False) -> tuple[Tensor, Tensor]:
        """Those of the past before a chunk's own. `noted`: the chunk that was noted in this call is of the past too."""
        past = self._new if noted else self._kept
        if slot not in past:
            return key, value
        keys, values = past[slot]
        return torch.cat([keys, key], 1), torch.cat([values, value], 1)

    def note(self, slot: Slot, key: Tensor, value: Tensor, tokens: int) -> None:
        """A chunk's own, which will belong to the past once the call is over. `tokens`: of one frame."""
        keys, values = self.joined(slot, key.detach(), value.detach())
        if slot not in self._kept:  # nothing was joined, and compiled code uses the memory of its tensors again
            keys, values = keys.clone(), values.clone()
        frames = key.shape[1] // tokens
        out = self.frames + frames - self.frames_with(frames)
        self._new[slot] = (self._without(keys, out, tokens, turn=True), self._without(values, out, tokens))

    def frames_with(self, frames: int) -> int:
        """How many it holds once so many more belong to it."""
        whole = self.frames + frames
        return whole if self.chunks.window is None else min(whole, self.chunks.window - self.chunks.size)

    def advance(self, frames: int) -> None:
        """The chunk that was noted, of so many frames, belongs to the past now."""
        self._kept.update(self._new)
        self._new = {}
        self.frames = self.frames_with(frames)

    def _without(self, kept: Tensor, out: int, tokens: int, turn: bool = False) -> Tensor:
        """Without so many frames after the sink."""
        if not out:
            return kept
        sink, rest = kept[:, : self.chunks.sink * tokens], kept[:, (self.chunks.sink + out) * tokens :]
        if turn:
            assert self.back is not None
            rest = rotated(rest, self.back)
        return torch.cat([sink, rest], 1) if self.chunks.sink else rest.contiguous()


def rotated(x: Tensor, by: Tensor) -> Tensor:
    """x (batch, tokens, heads, features) with each pair of neighbouring features turned (arXiv 2104.09864): multiplied,
    as a complex number, by one of length 1."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], x.shape[-1] // 2, 2))
    return torch.view_as_real(pairs * by).flatten(-2).to(x.dtype)
