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


SPARE = 2  # chunks of a row behind those that a call needs: so often one may leave before all others have to move


@dataclass
class Window:
    """Keys and values of the frames that the next chunk sees, by attention, each (batch, tokens, heads, features).

    They stand in rows, each chunk where it was written, its keys with the rotation of that place. When the oldest chunk
    leaves, nothing moves: what is held begins one place later. Only the sink is written anew, right before what stays,
    so that the newest chunk always has the same distance to each of them. At the end of a row all moves to its
    beginning, and is turned back.

    Attributes:
        frames: that it holds.
        start: the place of the first of them in a row.
        back: what turns a key back by a chunk, complex (1, 1, 1, features / 2): each pair of neighbouring features is
            multiplied by it.
    """

    chunks: Chunks
    frames: int = 0
    start: int = 0
    back: Tensor | None = None
    _room: int = 0  # frames of a row
    _rows: dict[Slot, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _sinks: dict[Slot, Tensor] = field(default_factory=dict)  # keys of the sink as they were, once it has moved
    _noted: int = 0  # frames

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for pair in self._rows.values() for part in pair)

    @property
    def end(self) -> int:
        """The place of the next frame."""
        return self.start + self.frames

    def begin(self) -> None:
        """A call begins: what an earlier one noted and did not advance is forgotten."""
        self._noted = 0

    def make_room(self, frames: int) -> None:
        """Before a call over so many frames."""
        if self.end + frames <= self._room:
            return
        room, size, window = self._room, self.chunks.size, self.chunks.window
        if self.frames + frames > room:
            frames = max(frames, 2 * size)
            room = 2 * (self.frames + frames) if window is None else window - size + frames + SPARE * size
        for slot, row in self._rows.items():
            self._rows[slot] = self._moved(slot, row, room)
        self.start, self._room = 0, room

    def joined(self, slot: Slot, key: Tensor, value: Tensor, *, noted: bool = False) -> tuple[Tensor, Tensor]:
        """Those of the past before a chunk's own. `noted`: the chunk that was noted in this call is of the past too.

        They are good until the next one is asked for or noted, unless they are to have gradients."""
        start, frames = self._held(self._noted if noted else 0)
        if not frames:
            return key, value
        keys, values = self._rows[slot]
        tokens = keys.shape[1] // self._room
        first, end = start * tokens, (start + frames) * tokens
        return _behind(keys, first, end, key), _behind(values, first, end, value)

    def note(self, slot: Slot, key: Tensor, value: Tensor, tokens: int) -> None:
        """A chunk's own, which will belong to the past once the call is over. `tokens`: of one frame."""
        if slot not in self._rows:
            self._rows[slot] = (_row(key, self._room * tokens), _row(value, self._room * tokens))
        keys, values = self._rows[slot]
        end = self.end * tokens
        keys[:, end : end + key.shape[1]], values[:, end : end + key.shape[1]] = key.detach(), value.detach()
        self._noted = key.shape[1] // tokens
        start, sink = self._held(self._noted)[0], self.chunks.sink * tokens
        if sink and start > self.start:
            before, now = self.start * tokens, start * tokens
            self._sinks.setdefault(slot, keys[:, before : before + sink].clone())
            keys[:, now : now + sink] = self._turned(self._sinks[slot], -start)
            values[:, now : now + sink] = values[:, before : before + sink].clone()

    def advance(self, frames: int) -> None:
        """The chunk that was noted, of so many frames, belongs to the past now."""
        self.start, self.frames = self._held(frames)
        self._noted = 0

    def _held(self, more: int) -> tuple[int, int]:
        """The place of the first frame that is held once so many more belong to it, and how many are."""
        whole, window = self.frames + more, self.chunks.window
        frames = whole if window is None else min(whole, window - self.chunks.size)
        return self.end + more - frames, frames

    def _moved(self, slot: Slot, row: tuple[Tensor, Tensor], room: int) -> tuple[Tensor, Tensor]:
        """A row of so many frames with what is held at its beginning."""
        keys, values = row
        tokens = keys.shape[1] // self._room
        held, whole = slice(self.start * tokens, self.end * tokens), self.frames * tokens
        others = (keys, values) if room == self._room else (_row(keys, room * tokens), _row(values, room * tokens))
        others[0][:, :whole] = self._turned(keys[:, held], self.start)
        others[1][:, :whole] = values[:, held].clone()
        if slot in self._sinks:
            others[0][:, : self.chunks.sink * tokens] = self._sinks[slot]
        return others

    def _turned(self, keys: Tensor, back: int) -> Tensor:
        """Turned back by so many frames."""
        if not back:
            return keys.clone()
        assert self.back is not None
        return rotated(keys, self.back ** (back // self.chunks.size))


def _row(like: Tensor, tokens: int) -> Tensor:
    return like.new_empty(like.shape[0], tokens, *like.shape[2:])


def _behind(row: Tensor, start: int, end: int, own: Tensor) -> Tensor:
    """What stands from start to end in a row, and a chunk's own behind it."""
    if torch.is_grad_enabled():
        return torch.cat([row[:, start:end], own], 1)
    row[:, end : end + own.shape[1]] = own
    return row[:, start : end + own.shape[1]]


def rotated(x: Tensor, by: Tensor) -> Tensor:
    """x (batch, tokens, heads, features) with each pair of neighbouring features turned (arXiv 2104.09864): multiplied,
    as a complex number, by one of length 1."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], x.shape[-1] // 2, 2))
    return torch.view_as_real(pairs * by).flatten(-2).to(x.dtype)
