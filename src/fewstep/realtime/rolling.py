"""Latents without end: chunk after chunk from noise, each after the window of those before."""

from __future__ import annotations

from collections import deque
from typing import Literal

import torch
from torch import Tensor

from fewstep.diffusion.samplers import euler, renoise
from fewstep.models.window import Window
from fewstep.realtime.model import LiveModel

OnPrompt = Literal["recache", "cut"]


class Rolling:
    """One stream of latents.

    Attributes:
        prompt, cond: what the next chunk is told; set by `turn`.
        cached: keys and values of the past are kept; without, the past is computed anew in every step.
    """

    def __init__(self, model: LiveModel, prompt: str, seed: int) -> None:
        self.model, self.cond, self.cached = model, model.condition(prompt), True
        self._generator = torch.Generator().manual_seed(seed)
        self.prompt, self._changes = prompt, model.changes
        self._window, self._past = Window(model.causal.chunks), deque[Tensor](maxlen=self._most())

    @property
    def window_bytes(self) -> int:
        return self._window.bytes

    @torch.no_grad()
    def chunk(self, steps: int) -> Tensor:
        """The next chunk in so many steps, (1, channels, frames, height, width).

        One without a past has nothing to go by but its prompt: it takes more of them, each from fresh noise, which
        washes out what does not belong there and would otherwise grow to one object too many.
        """
        model, opens = self.model, not self._past
        times = model.opening(steps) if opens else model.times(steps)
        noise = model.noise(self._generator)
        if self._changes != model.changes:
            self._changes = model.changes
            self.cond = model.condition(self.prompt)
            self._window = self._written()  # what was kept under other techniques may not fit
        elif not self.cached:
            self._window = self._written()
        with model.causal.after(self._window):
            if opens or model.manifest.sampler == "renoise":
                x0 = renoise(model.denoiser, noise, times, self.cond, generator=self._generator)
            else:
                x0 = euler(model.denoiser, noise, times, self.cond)
        self._write(self._window, x0)
        self._past.append(x0)
        return x0

    @torch.no_grad()
    def turn(self, prompt: str, how: OnPrompt) -> None:
        """Another prompt from the next chunk on. `recache`: the past stays, read anew under it (arXiv 2509.22622,
        section 3.1); `cut`: nothing of it stays."""
        self.prompt, self.cond = prompt, self.model.condition(prompt)
        if how == "cut":
            self._past.clear()
        self._window = self._written()

    def close(self) -> None:
        """Nothing more is asked of it."""

    def _most(self) -> int | None:
        """Chunks of the past that a chunk sees."""
        chunks = self.model.causal.chunks
        return None if chunks.window is None else chunks.window // chunks.size - 1

    def _written(self) -> Window:
        """A window that holds the past, read under the condition of now."""
        window = Window(self.model.causal.chunks)
        for x0 in self._past:
            self._write(window, x0)
        return window

    def _write(self, window: Window, x0: Tensor) -> None:
        with self.model.causal.after(window, write=True):
            self.model.denoiser(x0, self.model.denoiser.schedule.end, self.cond)
