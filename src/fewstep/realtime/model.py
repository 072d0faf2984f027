"""A pipeline that can be live: its denoiser traced and causal, its times, and a VAE that decodes a stream."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.accelerate import Accelerated, accelerate
from fewstep.diffusion.samplers import flow_times
from fewstep.distill.decoder import decoder_beside
from fewstep.distill.schedulers import shift_of
from fewstep.errors import InputError, bad_value
from fewstep.models.causal import Causal, causal_of
from fewstep.models.manifest import Manifest, manifest_of
from fewstep.models.model import Model
from fewstep.models.trace import TracedDenoiser, trace
from fewstep.realtime.decode import SmallStream, Stream, StreamDecoder, check_streams
from fewstep.realtime.regions import Parts
from fewstep.realtime.tricks import tricks_of
from fewstep.realtime.turns import FairLock
from fewstep.techniques import Engaged, Parallel, Technique
from fewstep.techniques.parallel.processes import Peers

EXAMPLE = "a"  # a prompt to trace with, which asks for nothing
OPENING = 2  # times the steps for a chunk without a past: of 80 openings 83% were right so, 66% as the others are made
KNOWN = 16  # prompts whose conditions are kept


@dataclass(eq=False)
class LiveModel:
    """What sessions share. Only one of them denoises at a time, and one decodes, which `lock` and `decoding` see to.

    A chunk without a past takes long, and gives way to those of other sessions between its steps. One such chunk is
    made at a time, or the first of many viewers would wait for the last: `openings`, taken before `lock`, sees to it.

    Attributes:
        pipe: the diffusers pipeline of a causal student.
        denoiser: its denoiser; one call a step, guidance inside.
        causal: the denoiser's causal structure.
        manifest: the student's.
        techniques: that can be put on it while sessions run, by name (`precision`, `compile`).
        small: a small decoder; None without one.
        parts: of its denoiser, which can be computed alone; None where they can't.
        changes: how often other techniques were put on.
        warm_since: the one of these since which all is compiled; see `warm`.
        peers: the other processes that share it, where it does what several of them repeat; see `peers.together`.
    """

    pipe: Any
    denoiser: TracedDenoiser
    causal: Causal
    manifest: Manifest
    techniques: dict[str, Technique] = field(default_factory=dict)
    small: nn.Module | None = None
    parts: Parts | None = None
    lock: FairLock = field(default_factory=FairLock)
    openings: FairLock = field(default_factory=FairLock)
    decoding: Any = field(default_factory=threading.RLock)
    changes: int = 0
    warm_since: int | None = None
    peers: Peers | None = None
    _on: Accelerated | None = None
    _conditions: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, pipe: Any, techniques: Sequence[Technique] = (), small: nn.Module | None = None) -> LiveModel:
        """From a pipeline that `fewstep.load` gave, and a small decoder that `distill.decoder.load_decoder` gave; None
        takes that of the pipeline's own folder, if it has one.

        Raises:
            InputError: it is no causal student, or its VAE can't decode a stream.
            TraceError: its denoiser can't be found.
        """
        manifest, model = manifest_of(pipe), Model(pipe)
        causal = causal_of(next(iter(model.denoisers.values()))) if model.denoisers else None
        if manifest is None or manifest.steps is None or manifest.times is None or causal is None:
            name = manifest.name if manifest else type(pipe).__name__
            raise InputError(
                f"{name} is no live model: it must be a causal student, as the methods causal_kd and self_forcing make."
            )
        check_streams(model.vae)
        # Its own few steps are not enough for a trace to check itself.
        call: dict[str, Any] = {"prompt": EXAMPLE, **manifest.call, "num_inference_steps": 4}
        with torch.no_grad():
            denoiser = trace(pipe, **call)
        own, named = decoder_beside(pipe) if small is None else small, {one.name: one for one in techniques}
        parts = None if Parallel.name in named else Parts.of(model)
        return cls(pipe, denoiser, causal, manifest, named, own, parts)

    @property
    def device(self) -> torch.device:
        """Where its denoiser is."""
        return self.denoiser.noise.device

    @property
    def steps(self) -> int:
        """The steps that the student was made for."""
        assert self.manifest.steps is not None
        return self.manifest.steps

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of a chunk, (channels, frames, height, width)."""
        channels, _, *sides = self.denoiser.noise.shape[1:]
        return (channels, self.causal.chunks.size, *sides)

    @property
    def frames_per_latent(self) -> int:
        return int(self.pipe.vae_scale_factor_temporal)

    def times(self, steps: int) -> tuple[float, ...]:
        """Of so many steps, falling, with the end.

        Raises:
            InputError: more steps than the student was made for, or fewer than 1.
        """
        if not 1 <= steps <= self.steps:
            raise InputError(bad_value("steps", "a live session", f"from 1 to the student's {self.steps}", steps))
        return tuple(flow_times(steps, self._shift))

    @property
    def opening(self) -> tuple[float, ...]:
        """The times of a chunk that has no past, falling: `OPENING` times as many as the student's, however few others
        take."""
        return tuple(flow_times(OPENING * self.steps, self._shift))

    @property
    def _shift(self) -> float:
        assert self.manifest.times is not None
        return shift_of(self.manifest.times)

    def condition(self, prompt: str) -> Any:
        """What the denoiser is told of a prompt; it is not run for that, so that each process finds out by itself.

        Raises:
            InputError: no text.
        """
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(bad_value("prompt", "a live session", "some text", prompt))
        with self.lock:
            if prompt not in self._conditions:
                while len(self._conditions) >= KNOWN:
                    del self._conditions[next(one for one in self._conditions if one != EXAMPLE)]
                with torch.no_grad():
                    self._conditions[prompt] = self.denoiser.condition(prompt=prompt)
            return self._conditions[prompt]

    def put_on(self, names: frozenset[str]) -> None:
        """Exactly these techniques, and no others, work from now on, or from the end of an opening on."""
        if frozenset(self.engaged) == names:
            return
        with self.openings, self.lock, self.decoding:
            if frozenset(self.engaged) == names:
                return
            self.changes += 1
            self._conditions.clear()
            with nullcontext() if self.peers is None else self.peers.told("put_on", names):
                if self._on is not None:
                    self._on.remove()
                chosen = [one for name, one in self.techniques.items() if name in names]
                self._on = accelerate(self.pipe, chosen) if chosen else None
                if chosen:
                    self._seen()

    @torch.no_grad()
    def _seen(self) -> None:
        """One call, over a whole clip, the same on all processes: a technique may look at the model in the first, and
        it must not be a session's. It is not compiled for that."""
        noise = self.denoiser.noise
        clip = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0)).to(noise)
        with self.causal.unmasked(), torch.compiler.set_stance("force_eager"):
            self.denoiser(clip, self.opening[0])

    @property
    def tricks(self) -> dict[str, str]:
        """What a session of it can switch, and what that does, beside its techniques."""
        return tricks_of(self.small is not None, self.parts is not None)

    @property
    def engaged(self) -> dict[str, Engaged]:
        """What the techniques that are on really did."""
        return {} if self._on is None else {one.name: one for one in self._on.engaged}

    def decoders(self) -> dict[str, Stream]:
        """A new stream through each decoder: the VAE's, and `small` where there is one."""
        found: dict[str, Stream] = {"vae": StreamDecoder(self.pipe.vae)}
        if self.small is not None:
            found["small"] = SmallStream(self.small, self.pipe.vae, self.frames_per_latent)
        return found

    def noise(self, generator: torch.Generator) -> Tensor:
        """A chunk of noise, (1, channels, frames, height, width)."""
        return torch.randn(1, *self.latent_shape, generator=generator).to(self.denoiser.noise.device)
