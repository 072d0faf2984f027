"""Latents without end: chunk after chunk from noise, each after the window of those before.

A chunk that is done is read into the window in the call in which the next one takes its first step, so that n steps of
a chunk are n calls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep.diffusion.samplers import euler, renoise
from fewstep.diffusion.schedule import Schedule, Time
from fewstep.models.window import Window
from fewstep.realtime.model import EXAMPLE, LiveModel
from fewstep.realtime.opening import best
from fewstep.realtime.regions import Moving

OnPrompt = Literal["recache", "cut"]


class Rolling:
    """One stream of latents, and the denoiser of its next chunk.

    Attributes:
        prompt, cond: what the next chunk is told; set by `turn`.
        cached: keys and values of the past are kept; without, the past is computed anew for every chunk.
        candidates: of a chunk without a past; see `opening`.
        between: called before each step of a chunk without a past, which takes long; others may denoise then.
        share: of a chunk's tokens, those that are to be computed after its first step; see `part`.
    """

    def __init__(self, model: LiveModel, prompt: str, seed: int) -> None:
        self.model, self.cond, self.cached, self.share = model, model.condition(prompt), True, 1.0
        self.candidates = 1
        self.between: Callable[[], None] | None = None
        self._generator = torch.Generator().manual_seed(seed)
        self.prompt, self._changes = prompt, model.changes
        self._window, self._past = Window(model.causal.chunks), deque[Tensor](maxlen=self._most())
        self._unread: Tensor | None = None  # the newest of the past, where the window does not hold it yet
        self._moving: Moving | None = None  # of the chunk in the making, where not all of it is computed

    @property
    def window_bytes(self) -> int:
        return self._window.bytes

    @property
    def full(self) -> bool:
        """Whether the past is as long as a chunk can see; where that has no end, whether there is any."""
        return len(self._past) == self._most() if self._past.maxlen is not None else bool(self._past)

    @torch.no_grad()
    def chunk(self, steps: int) -> Tensor:
        """The next chunk in so many steps, unless it has no past, (1, channels, frames, height, width)."""
        model = self.model
        self._moving = self._begun(steps)
        if self._changes != model.changes:
            self._changes = model.changes
            self.cond = model.condition(self.prompt)
            self._read_anew()  # what was kept under other techniques may not fit
        elif not self.cached:
            self._read_anew()
        x0 = self._followed(steps) if self._past else self._opened()
        self._moving = None
        self._past.append(x0)
        self._unread = x0 if self._past else None
        return x0

    @property
    def schedule(self) -> Schedule:
        return self.model.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Time, cond: Any = None) -> Tensor:
        """The model's prediction for a chunk x_t after all of the past."""
        if self.between is not None and not self._past:
            self.between()
        if self._moving is None:
            return self._predict(x_t, t, cond)
        return self._moving(partial(self._predict, x_t, t, cond), x_t, t)

    def part(self, steps: int) -> float:
        """Which share of the next chunk's tokens will be computed after its first step: all of them until the window is
        full (what an opening has wrong is mended in the chunks after it), and where there is no second step."""
        return self.share if steps > 1 and self._past and self.full else 1.0

    def takes(self, steps: int) -> int:
        """How many the next chunk will take: those of an opening where it has no past."""
        return steps if self._past else len(self.model.opening) - 1

    def _followed(self, steps: int) -> Tensor:
        """A chunk with a past."""
        noise, times = self.model.noise(self._generator), self.model.times(steps)
        if self.model.manifest.sampler == "renoise":
            return renoise(self, noise, times, self.cond, generator=self._generator)
        return euler(self, noise, times, self.cond)

    def _opened(self) -> Tensor:
        """A chunk without a past, which has nothing to go by but its prompt: it takes more steps, each from fresh
        noise, which washes out what does not belong there and would otherwise grow to one object too many."""
        model, generator = self.model, self._generator
        noise = torch.cat([model.noise(generator) for _ in range(self.candidates)])
        chunks = renoise(self, noise, model.opening, self.cond, generator=generator)
        return chunks if len(chunks) == 1 else best(self, chunks, self.cond, model.condition(EXAMPLE), generator)

    def _begun(self, steps: int) -> Moving | None:
        """The calls of the next chunk, held against the last frame of the one before; None: all is computed."""
        if (share := self.part(steps)) == 1:
            return None
        before = self._past[-1]
        assert self.model.parts is not None
        return Moving(self.model.parts, self.schedule, before[:, :, -1:].expand_as(before), share)

    def _predict(self, x_t: Tensor, t: Time, cond: Any) -> Tensor:
        model, known, self._unread = self.model, self._unread, None
        if known is None:
            with model.causal.after(self._window):
                return model.denoiser(x_t, t, cond)
        frames = known.shape[2]
        times = torch.tensor([[self.schedule.end] * frames + [float(t)] * x_t.shape[2]], device=x_t.device)
        with model.causal.after(self._window, keep=frames):
            return model.denoiser(torch.cat([known, x_t], 2), times, cond)[:, :, frames:]

    @torch.no_grad()
    def turn(self, prompt: str, how: OnPrompt) -> None:
        """Another prompt from the next chunk on. `recache`: the past stays, read anew under it (arXiv 2509.22622,
        section 3.1); `cut`: nothing of it stays."""
        self.prompt, self.cond = prompt, self.model.condition(prompt)
        if how == "cut":
            self._past.clear()
        self._read_anew()

    def close(self) -> None:
        """Nothing more is asked of it."""

    def _most(self) -> int | None:
        """Chunks of the past that a chunk sees."""
        chunks = self.model.causal.chunks
        return None if chunks.window is None else chunks.window // chunks.size - 1

    def _read_anew(self) -> None:
        """A window of the past under the condition of now; its newest chunk is read with the next one, as always."""
        self._window, past = Window(self.model.causal.chunks), list(self._past)
        self._unread = past.pop() if past else None
        for x0 in past:
            with self.model.causal.after(self._window, keep=x0.shape[2]):
                self.model.denoiser(x0, self.schedule.end, self.cond)
