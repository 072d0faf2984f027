"""A video transformer that sees the past alone: its frames come in chunks, and each chunk attends to those before.

Attention over all frames at once is made causal by a mask (training, with a time for each frame), or a chunk comes by
itself and finds the keys and values of the past in a `Window` (arXiv 2412.07772, 2506.08009). Or all chunks come at
once and find a second, clean copy of the clip beside them, which is the past of each. All are the same function, so a
model trained with one runs with another. Its weights are those of the class it always was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import InputError, bad_value
from fewstep.models.dispatch import attention_of, redirect
from fewstep.models.families import Temporal, family
from fewstep.models.gateway import Gateway, Pass, Run, Slot
from fewstep.models.grid import patch_of
from fewstep.models.window import Chunks, Window


@dataclass
class Clip:
    """What the transformer works on now: latent frames, and tokens in each of them."""

    frames: int = 0
    tokens: int = 0


class Causal:
    """The causal structure of one transformer, and of all deep copies of it, which are called one at a time.

    Without anything else, attention is masked: a call over all frames is causal.

    Raises:
        InputError: it can't be made causal, or a chunk is no whole number of its patches.
    """

    def __init__(self, transformer: nn.Module, chunks: Chunks) -> None:
        self.chunks, self.clip = chunks, Clip()
        self.doing: Pass | None = Masked(chunks, self.clip)
        self._facts = temporal(transformer)
        self._patch = patch_of(getattr(transformer, "config", {}), 3)
        if chunks.size % self._patch[0]:
            raise InputError(bad_value("chunk", "a causal student", f"a multiple of {self._patch[0]}", chunks.size))
        for path, module in transformer.named_modules():
            if path.rpartition(".")[2] == self._facts.attention:
                if attention_of(module) is None:
                    raise InputError(f"{type(transformer).__name__} attends in a way of its own at {path}.")
                redirect(module, Gateway(self, path, module))
        # Functions, not methods: a deep copy of the transformer keeps them, and so this structure.
        transformer.register_forward_pre_hook(lambda *call: self._prepared(*call), with_kwargs=True)
        transformer.get_submodule(self._facts.rope).register_forward_hook(lambda *call: self._placed(*call))
        transformer.fewstep_causal = self  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> Causal:
        return self

    @contextmanager
    def after(self, window: Window, *, keep: int = 0) -> Iterator[None]:
        """Inside the block a call is over one chunk, the next after those that `window` holds.

        With `keep` the call's first so many frames are a chunk as it came out, and the window holds it afterwards; the
        frames behind them, if any, are the next chunk, which sees it there: two calls in one.
        """
        before, self.doing = self.doing, Remembering(window, self.clip, keep)
        window.begin()
        try:
            yield
            if keep:
                window.advance(keep)
        finally:
            self.doing = before

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Inside the block a call is over a clip twice, its frames one after the other: as it is known, and as it is to
        be denoised. Each chunk of the second copy sees itself, and of the first what a window would hold of it."""
        before, self.doing = self.doing, Beside(self.chunks, self.clip)
        try:
            yield
        finally:
            self.doing = before

    @contextmanager
    def unmasked(self) -> Iterator[None]:
        """Inside the block all frames see each other, as before it was causal."""
        before, self.doing = self.doing, None
        try:
            yield
        finally:
            self.doing = before

    def _prepared(self, transformer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Notes the clip's shape, and tells each token the time of its frame."""
        hidden, timestep = kwargs[self._facts.hidden], kwargs[self._facts.timestep]
        frames, height, width = (n // side for n, side in zip(hidden.shape[-3:], self._patch, strict=True))
        self.clip.frames, self.clip.tokens = frames, height * width
        if isinstance(self.doing, Remembering):
            self.doing.window.make_room(frames)
        if timestep.dim() < 2:
            return args, kwargs
        each = timestep[:, :: self._patch[0]].repeat_interleave(height * width, 1)
        return args, {**kwargs, self._facts.timestep: each}

    def _placed(self, rope: nn.Module, args: tuple[Any, ...], rotations: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """The rotations of a chunk's own place, not of the first frames; of a clip twice, those of one, twice."""
        if isinstance(self.doing, Beside):
            half = args[0][..., : args[0].shape[-3] // 2, :, :]
            return tuple(torch.cat([part, part], 1) for part in type(rope).forward(rope, half))
        if not isinstance(self.doing, Remembering):
            return rotations
        window, tokens = self.doing.window, self.clip.tokens
        if window.back is None:
            window.back = _turned(rope, args[0], window.chunks.size, self._patch)
        if not window.end:
            return rotations
        frames = (window.end + self.clip.frames) * self._patch[0]
        longer = args[0][..., :1, :, :].expand(*args[0].shape[:-3], frames, *args[0].shape[-2:])
        tables = type(rope).forward(rope, longer)
        # Copies, in plain order: compiled blocks would take slices of longer and longer tables for other inputs.
        own = (table[:, window.end * tokens :] for table in tables)
        return tuple(table.clone(memory_format=torch.contiguous_format) for table in own)


def causal_of(transformer: nn.Module) -> Causal | None:
    """The causal structure of a transformer that has one."""
    found = getattr(transformer, "fewstep_causal", None)
    return found if isinstance(found, Causal) else None


def make_causal(transformer: nn.Module, chunks: Chunks) -> Causal:
    """Let a video transformer see only the past, in place; one that does already must do it in these chunks.

    Raises:
        InputError: it can't be made so, or it has other chunks.
    """
    found = causal_of(transformer)
    if found is None:
        return Causal(transformer, chunks)
    if found.chunks != chunks:
        raise InputError(f"The student to start from is causal in {found.chunks}; this job asks for {chunks}.")
    return found


def temporal(transformer: nn.Module) -> Temporal:
    """What `families.py` knows of a transformer's time.

    Raises:
        InputError: nothing.
    """
    name = type(transformer).__name__
    facts = family(name).temporal
    if facts is None:
        raise InputError(
            f"{name} can't be made causal: fewstep must know its attention over the frames, its rotary embedding and "
            "that it takes a time for each token ('temporal' in models/families.py)."
        )
    return facts


@dataclass(frozen=True, eq=False)
class Masked:
    """All frames at once: each attends to those that its chunk may see."""

    chunks: Chunks
    clip: Clip

    def slot(self, path: str) -> Slot:
        return path, 0

    def attend(self, slot: Slot, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, run: Run) -> Tensor:
        seen = _mask(self.chunks, self.clip.frames, self.clip.tokens).to(query.device)
        return run(query, key, value, seen)


@dataclass(frozen=True, eq=False)
class Beside(Masked):
    """A clip twice: see `Causal.beside`."""

    def attend(self, slot: Slot, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, run: Run) -> Tensor:
        if self.chunks.window is None or self.chunks.sink:
            seen = _mask(self.chunks, self.clip.frames // 2, self.clip.tokens, twice=True).to(query.device)
            return run(query, key, value, seen)
        # Chunk by chunk, each with its own window: of a long clip most is far away.
        size = self.chunks.size * self.clip.tokens
        past = self.chunks.window // self.chunks.size - 1
        keys, values = (with_past(x, size, past) for x in (key, value))
        answers = run(query.reshape(-1, size, *query.shape[2:]), keys, values, _open(query, size, past))
        return answers.reshape(query.shape)


def with_past(x: Tensor, size: int, past: int) -> Tensor:
    """Keys of a clip twice, (batch, tokens, heads, features), in chunks of `size` tokens, as each chunk sees them: so
    many chunks of the first copy before it, zeros where there are none, and itself, (batch · chunks, tokens, …)."""
    first, second = (half.reshape(len(x), -1, size, *x.shape[2:]) for half in x.chunk(2, 1))
    chunks = first.shape[1]
    padded = torch.cat([first.new_zeros(len(x), past, *first.shape[2:]), first], 1)
    before = [padded[:, i : i + chunks] for i in range(past)]
    return torch.cat([torch.cat([*before, own], 2) for own in (first, second)], 1).flatten(0, 1)


def _open(query: Tensor, size: int, past: int) -> Tensor:
    """Which of these keys are there: (batch · chunks, 1, 1, keys)."""
    chunks = query.shape[1] // size // 2
    there = torch.arange(chunks)[:, None] + torch.arange(past + 1)[None] >= past
    return there.repeat_interleave(size, 1).repeat(2 * len(query), 1)[:, None, None].to(query.device)


@lru_cache(maxsize=8)
def _mask(chunks: Chunks, frames: int, tokens: int, twice: bool = False) -> Tensor:
    """Which tokens see which, True where they do: (1, 1, tokens, tokens)."""
    seen = chunks.seen(frames)
    if twice:
        chunk = torch.arange(frames) // chunks.size
        own = chunk[:, None] == chunk[None]
        seen = torch.cat([torch.cat([seen, torch.zeros_like(own)], 1), torch.cat([seen & ~own, own], 1)])
    return seen.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)[None, None]


@dataclass(frozen=True, eq=False)
class Remembering:
    """A chunk that attends to the window and to itself; before it perhaps the one that the window is to hold: see
    `Causal.after`."""

    window: Window
    clip: Clip
    keep: int

    def slot(self, path: str) -> Slot:
        return path, 0

    def attend(self, slot: Slot, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, run: Run) -> Tensor:
        if not self.keep:
            return run(query, *self.window.joined(slot, key, value), mask)
        kept = self.keep * self.clip.tokens
        own_key, own_value = key[:, :kept], value[:, :kept]
        answer = run(query[:, :kept], *self.window.joined(slot, own_key, own_value), mask)
        self.window.note(slot, own_key, own_value, self.clip.tokens)
        if kept == query.shape[1]:
            return answer
        keys, values = self.window.joined(slot, key[:, kept:], value[:, kept:], noted=True)
        return torch.cat([answer, run(query[:, kept:], keys, values, mask)], 1)


def _turned(rope: nn.Module, hidden: Tensor, frames: int, patch: tuple[int, ...]) -> Tensor:
    """What turns a key back by so many frames, complex (1, 1, 1, features / 2)."""
    blank = hidden.new_zeros(1, 1, frames * patch[0] + patch[0], patch[1], patch[2])
    cos, sin = (one[:, -1:].float() for one in type(rope).forward(rope, blank))
    return torch.complex(cos[..., 0::2], -sin[..., 1::2])
