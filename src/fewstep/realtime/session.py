"""A live session: one viewer's endless video, made in threads of its own, delivered in time, and steered while it runs.

    model = LiveModel.of(fewstep.load("zoo:moving-shapes-live"))
    with Session(model, "a red ring moving left", fps=16) as session:
        for chunk in session:
            show(chunk.frames, at=chunk.due)

One thread denoises, another decodes what the first one made, and whoever iterates takes the frames. Nobody waits for
the one after: a viewer who does not take frames in time loses the oldest of them.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from queue import Empty, Full, Queue
from typing import Any, get_args

import torch
from torch import Tensor

from fewstep.errors import FewstepError, InputError, bad_value
from fewstep.machine import compute_with, finish, queue_of_its_own
from fewstep.realtime.decode import Stream, to_bytes
from fewstep.realtime.model import LiveModel
from fewstep.realtime.opening import CANDIDATES
from fewstep.realtime.pace import SLOWEST, Controller, FrameClock, Level, levels
from fewstep.realtime.peers import stream
from fewstep.realtime.regions import SHARE
from fewstep.realtime.rolling import OnPrompt
from fewstep.realtime.told import Chunk, Stats
from fewstep.realtime.tricks import ADAPT, CHOOSE, OFF, OVERLAP, REGIONS, SMALL, WINDOW
from fewstep.realtime.turns import HalfTheTime
from fewstep.realtime.warm import warm

AHEAD = 3  # chunks that are made before they are due, and as many wait for a viewer
CROWD = 2  # others who wait for the model: an opening is then not chosen among several
POLL = 0.05  # seconds between looks at whether the session was closed


@dataclass(frozen=True)
class _Made:
    """Latents on their way to the decoder. `cut`: nothing of the frames before belongs to them."""

    latents: Tensor
    index: int
    frames: int
    prompt: str
    cut: bool
    level: Level
    candidates: int
    denoise: float
    window: int


@dataclass
class _Counts:
    """What the threads count; each number is written by one of them."""

    first: float | None = None
    scheduled: int = 0
    frames: int = 0
    dropped: int = 0
    steps: int = 0
    window: int = 0
    chunks: int = 0


class Session:
    """One viewer's video. Iterate once; `close` ends it, as leaving a `with` block does.

    Args:
        model: a `LiveModel`, or a pipeline of which one is made.
        prompt: what to show first.
        fps: frames a second that the viewer sees.
        seed: of the noise.
        steps: of a chunk, at most; None: those that the student was made for.
        on_prompt: what another prompt does to the past; see `Rolling.turn`.
        off, on: tricks that are off at the start, and that are on though they otherwise would not be (`regions`). Those
            of the model's techniques are on or off for all of its sessions.
        paced: work is done when it is due. Otherwise as fast as frames are taken, and none is dropped.

    Raises:
        InputError: a value out of range, or no live model.
    """

    def __init__(
        self,
        model: LiveModel | Any,
        prompt: str,
        *,
        fps: float = 16.0,
        seed: int | None = None,
        steps: int | None = None,
        on_prompt: OnPrompt = "cut",
        off: Collection[str] = (),
        on: Collection[str] = (),
        paced: bool = True,
    ) -> None:
        self.model = model if isinstance(model, LiveModel) else LiveModel.of(model)
        if on_prompt not in get_args(OnPrompt):
            raise InputError(bad_value("on_prompt", "a live session", " or ".join(get_args(OnPrompt)), on_prompt))
        most = self.model.steps if steps is None else steps
        self.model.times(most)
        self.fps, self._paced, self._on_prompt = fps, paced, on_prompt
        slowest = SLOWEST if paced else 1  # without a clock there is none to slow down
        self._controller = Controller(levels(most, fps, slowest, 1.0 if self.model.parts is None else SHARE))
        self._frames = self.model.causal.chunks.size * self.model.frames_per_latent  # of a chunk
        self._clock = FrameClock(fps, held=self._frames)
        self._tricks = {name: name not in OFF for name in (*self.model.tricks, *self.model.techniques)}
        for name in (*off, *on):
            self._known(name)
            self._tricks[name] = name in on
        self._put_on()
        self._prompt = prompt
        self._turn: str | None = None
        self._rolling = stream(self.model, prompt, random.randrange(2**31) if seed is None else seed)
        self._decoders, self._decoder = self.model.decoders(), "vae"
        self._latents: Queue[_Made] = Queue(maxsize=1)
        self._chunks: deque[Chunk] = deque()
        self._spent: deque[tuple[float, int]] = deque(maxlen=16)  # seconds of a chunk's work, and its frames
        self._changed, self._closed, self._counts = threading.Condition(), threading.Event(), _Counts(steps=most)
        self._error: BaseException | None = None
        self._over = False
        self._began = time.monotonic()
        cores = max(1, torch.get_num_threads() - 1)  # beside the one that decodes; more would wait for each other
        self._threads = [
            threading.Thread(target=self._guarded, args=(run, threads), daemon=True, name=run.__name__)
            for run, threads in ((self._denoise_all, cores), (self._decode_all, 1))
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Chunk]:
        """Chunks in their order, until `close`.

        Raises:
            FewstepError: the work failed, and why.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._chunks or self._closed.is_set())
                if self._error is not None:
                    raise FewstepError(f"The live session ended: {self._error}") from self._error
                if self._closed.is_set():
                    return
                chunk = self._chunks.popleft()
                self._changed.notify_all()
            yield chunk

    @property
    def tricks(self) -> dict[str, bool]:
        """What can be switched, and whether it is on."""
        return dict(self._tricks)

    @property
    def stats(self) -> Stats:
        counts, spent = self._counts, list(self._spent)
        seconds, frames = sum(one for one, _ in spent), sum(n for _, n in spent)
        return Stats(
            frames=counts.frames,
            fps=frames / seconds if seconds else 0.0,
            first_frame_s=counts.first,
            jitter_ms=1000 * self._clock.jitter(),
            missed=self._clock.missed,
            dropped=counts.dropped,
            steps=counts.steps,
            load=self._controller.load,
            window_mb=counts.window / 2**20,
            said=self._controller.said[-1] if self._controller.said else "",
        )

    def prompt(self, text: str) -> None:
        """Show something else, from the next chunk on that is not begun.

        Raises:
            InputError: no text.
        """
        self.model.condition(text)  # here, so that the chunks need not wait for it
        self._turn = text

    def switch(self, trick: str, on: bool) -> None:
        """Turn a trick on or off, from the next chunk on.

        Raises:
            InputError: an unknown one.
        """
        self._known(trick)
        self._tricks[trick] = bool(on)
        if trick in self.model.techniques:
            self._put_on()

    def close(self) -> None:
        """End the session; a second call does nothing."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        if not self._over:
            self._over = True
            self._rolling.close()

    # -----------------------------------------------------------------------------------------------------------------
    # The threads

    def _guarded(self, run: Callable[[], None], threads: int) -> None:
        try:
            compute_with(threads)
            run()
        except BaseException as error:
            self._error = error
            self._closed.set()
        with self._changed:
            self._changed.notify_all()

    def _denoise_all(self) -> None:
        while not self._closed.is_set():
            self._wait()
            if self._closed.is_set():
                return
            made = self._denoise()
            if self._tricks[OVERLAP]:
                self._hand_over(made)
            else:
                self._deliver(made)

    def _decode_all(self) -> None:
        with queue_of_its_own(self.model.device):
            while not self._closed.is_set():
                try:
                    made = self._latents.get(timeout=POLL)
                except Empty:
                    continue
                self._deliver(made)

    @property
    def _level(self) -> Level:
        """What the next chunk may cost."""
        level = self._controller.now if self._tricks[ADAPT] else self._controller.levels[0]
        return replace(level, share=SHARE) if self._tricks.get(REGIONS) and level.steps > 1 else level

    @property
    def _candidates(self) -> int:
        """Of an opening; one where others wait, unless time does not count."""
        crowded = self._tricks[ADAPT] and (self.model.openings.waiting > 0 or self.model.lock.waiting >= CROWD)
        return CANDIDATES if self._tricks[CHOOSE] and not crowded else 1

    def _wait(self) -> None:
        """Until the next chunk's work is due; unpaced, until there is room for it."""
        if self._paced:
            while not self._closed.is_set():
                ahead = AHEAD * self._frames / self._level.fps
                left = self._clock.wait(self._counts.scheduled, ahead, time.monotonic())
                if left <= 0:
                    return
                self._closed.wait(min(left, POLL))
        with self._changed:
            self._changed.wait_for(lambda: len(self._chunks) < AHEAD or self._closed.is_set())

    def _denoise(self) -> _Made:
        warm(self.model, self._prompt)
        turn, self._turn = self._turn, None
        started, counts = time.monotonic(), self._counts
        level = self._level
        self._clock.run_at(level.fps, counts.scheduled)
        cut = counts.scheduled == 0 or (turn is not None and self._on_prompt == "cut")
        with self.model.openings if cut else nullcontext(), self.model.lock:
            if turn is not None:
                self._prompt = turn
                self._rolling.turn(turn, self._on_prompt)
            alone = self.model.peers is None  # several processes do one thing after another
            self._rolling.between = HalfTheTime(self.model.lock) if cut and alone else None
            self._rolling.cached, self._rolling.share = self._tricks[WINDOW], level.share
            candidates = self._rolling.candidates = self._candidates if cut else 1
            taken, share = self._rolling.takes(level.steps), self._rolling.part(level.steps)
            latents = self._rolling.chunk(level.steps)
            finish(self.model.device)  # so that it is this chunk's time which is measured
        frames = self.model.frames_per_latent * (latents.shape[2] - cut) + cut
        made = _Made(
            latents,
            counts.scheduled,
            frames,
            self._prompt,
            cut,
            replace(level, steps=taken, share=share),  # what it came to, which viewers are told
            candidates,
            time.monotonic() - started,
            self._rolling.window_bytes,
        )
        counts.scheduled += frames
        return made

    def _hand_over(self, made: _Made) -> None:
        while not self._closed.is_set():
            try:
                self._latents.put(made, timeout=POLL)
                return
            except Full:
                continue

    def _deliver(self, made: _Made) -> None:
        """Decode, and let the viewer have it."""
        started = time.monotonic()
        with self.model.decoding:
            frames = to_bytes(self._chosen(made.cut)(made.latents))
        now = time.monotonic()
        decode, counts, has = now - started, self._counts, len(frames) / made.level.fps
        spent = max(made.denoise, decode) if self._tricks[OVERLAP] else made.denoise + decode
        counts.first = now - self._began if counts.first is None else counts.first
        counts.frames, counts.steps, counts.window = made.index + len(frames), made.level.steps, made.window
        counts.chunks += 1
        self._clock.ready(made.index, now)
        if not made.cut:
            self._spent.append((spent, len(frames)))
            self._controller.heard(counts.chunks, spent, has)
        work: dict[str, float | int | str] = {
            "steps": made.level.steps,
            "share": made.level.share,
            "candidates": made.candidates,
            "fps": made.level.fps,
            "denoise_ms": round(1000 * made.denoise, 1),
            "decode_ms": round(1000 * decode, 1),
            "window_mb": round(made.window / 2**20, 2),
        }
        chunk = Chunk(frames, made.index, made.prompt, self._clock.due(made.index), work)
        with self._changed:
            if len(self._chunks) >= AHEAD and self._paced:
                counts.dropped += len(self._chunks.popleft().frames)
            self._chunks.append(chunk)
            self._changed.notify_all()

    def _chosen(self, cut: bool) -> Stream:
        """The decoder of now, which goes on where the other one was."""
        before, self._decoder = self._decoders[self._decoder], "small" if self._tricks.get(SMALL) else "vae"
        now = self._decoders[self._decoder]
        if cut or now is not before:
            now.follow(None if cut else before.last)
        return now

    # -----------------------------------------------------------------------------------------------------------------

    def _known(self, trick: str) -> None:
        if trick not in self._tricks:
            raise InputError(bad_value("trick", "a live session", f"one of {', '.join(self._tricks)}", trick))

    def _put_on(self) -> None:
        self.model.put_on(frozenset(name for name in self.model.techniques if self._tricks[name]))
