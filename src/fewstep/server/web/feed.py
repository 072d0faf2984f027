"""From what makes chunks to a viewer who may be slow: threads that never wait, and an outbox that never grows."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeAlias

from fewstep.errors import InputError, bad_value
from fewstep.realtime.told import Chunk
from fewstep.server.live import Busy, Malformed, Source, Start, Studio

Wish: TypeAlias = Start  # what a teacher is to show: the prompt and the seed of a session


class Outbox:
    """Chunks on their way to one viewer: at most `window` that were sent and not yet shown, or wait to be sent.

    Whoever makes chunks never waits. Where a viewer has no room for a new one, it takes the place of those that wait.
    """

    def __init__(self, window: int) -> None:
        self.window, self.dropped = window, 0
        self._waiting: deque[tuple[Chunk, float]] = deque()
        self._sent: deque[int] = deque()
        self._last, self._heard = -1, 0.0
        self._lock = threading.Lock()

    def offer(self, chunk: Chunk, now: float) -> int:
        """A new chunk; returns how many frames were dropped for it."""
        with self._lock:
            self._waiting.append((chunk, now))
            dropped = 0
            while len(self._waiting) > max(1, self.window - len(self._sent)):
                dropped += len(self._waiting.popleft()[0].frames)
            self.dropped += dropped
            return dropped

    def take(self, now: float) -> tuple[Chunk, float] | None:
        """The next chunk to send, and when it came; None where there is none, or no room for it."""
        with self._lock:
            if not self._waiting or len(self._sent) >= self.window:
                return None
            if not self._sent:
                self._heard = now
            chunk, came = self._waiting.popleft()
            self._last = chunk.index
            self._sent.append(chunk.index)
            return chunk, came

    def shown(self, index: int, now: float) -> None:
        """The viewer is done with the chunk that begins with this frame, and with those before it.

        Raises:
            Malformed: it was not sent that far.
        """
        with self._lock:
            if index > self._last:
                raise Malformed(bad_value("index", "a 'shown' message", f"at most {self._last}", index), "index")
            while self._sent and self._sent[0] <= index:
                self._sent.popleft()
                self._heard = now

    def clear(self) -> None:
        """Forget what waits and what was sent."""
        with self._lock:
            self._waiting.clear()
            self._sent.clear()

    @property
    def last(self) -> int:
        """The first frame of the newest chunk that was sent; -1 before any was."""
        return self._last

    @property
    def in_flight(self) -> int:
        return len(self._sent)

    def silent(self, now: float) -> float:
        """Seconds for which a viewer who has something to show did not say that it was shown."""
        with self._lock:
            return now - self._heard if self._sent else 0.0


class Feed:
    """One source of one viewer: a thread takes chunks as they come, and never waits for the viewer."""

    def __init__(self, source: Source, window: int, wake: Callable[[], None], dropped: Callable[[int], None]) -> None:
        self.source, self.outbox = source, Outbox(window)
        self.frames, self.fps, self.since = 0, 0.0, 0.0
        self.announced = self.over = False
        self.error: Exception | None = None
        self._wake, self._dropped = wake, dropped

    def start(self, chunks: Iterable[Chunk]) -> None:
        self.since = time.monotonic()
        threading.Thread(target=self._run, args=(chunks,), daemon=True, name=f"fewstep-{self.source}").start()

    def _run(self, chunks: Iterable[Chunk]) -> None:
        try:
            for chunk in chunks:
                now = time.monotonic()
                self.frames += len(chunk.frames)
                self.fps, self.since = len(chunk.frames) / max(now - self.since, 1e-3), now
                self._dropped(self.outbox.offer(chunk, now))
                self._wake()
        except Exception as error:
            self.error = error
        self.over = True
        self._wake()


class Beside:
    """The teacher beside a viewer's session. One thread follows what is wanted: a teacher that is in the middle of its
    work can't be interrupted, and must not be joined by another one whenever the prompt changes."""

    def __init__(self, feed: Feed, studio: Studio, places: threading.Semaphore) -> None:
        self.feed, self._studio, self._places = feed, studio, places
        self._wanted: Wish | None = None
        self._running, self._lock = False, threading.Lock()

    @property
    def on(self) -> bool:
        return self._wanted is not None

    def want(self, wanted: Wish | None) -> None:
        """Show this; None: nothing.

        Raises:
            Busy: other viewers' teachers are at work.
        """
        with self._lock:
            if wanted is not None and not self._running:
                if not self._places.acquire(blocking=False):
                    raise Busy("The teacher is at work for other viewers; try again in a while.")
                self._running = True
                self.feed.start(self._follow())
            self._wanted = wanted
        self.feed.outbox.clear()

    def _follow(self) -> Iterator[Chunk]:
        """Chunks of what is wanted, numbered on and on; ends when it was all shown, or nothing is wanted any more."""
        done = None
        try:
            while (wanted := self._next(done)) is not None:
                self.feed.since = time.monotonic()
                for chunk in self._chunks(wanted):
                    if self._wanted is not wanted:
                        break
                    yield replace(chunk, index=self.feed.frames)
                done = wanted
        except Exception:
            with self._lock:
                self._wanted = None
                self._ended()
            raise

    def _next(self, done: Wish | None) -> Wish | None:
        with self._lock:
            if self._wanted is None or self._wanted is done:
                self._ended()
                return None
            return self._wanted

    def _ended(self) -> None:
        self._running = False
        self._places.release()

    def _chunks(self, wanted: Wish) -> Iterator[Chunk]:
        chunks = self._studio.teacher(wanted.prompt, seed=wanted.seed)
        if chunks is None:
            raise InputError(f"{self._studio.name} has no teacher to show.")
        return chunks
