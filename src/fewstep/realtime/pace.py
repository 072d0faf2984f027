"""Keeping time: when each frame is due, what was missed, and how much work the next chunk may cost. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fewstep.errors import InputError, bad_value

KEPT = 600  # chunks whose lateness is remembered
SMOOTH = 0.5  # weight of the newest chunk in the load
PACES = 16  # changes of a clock's pace that it remembers
SLOWEST = 4  # to which part a clock is slowed down


@dataclass(frozen=True)
class Level:
    """What chunks may cost: steps, how many frames a second there are, and the share of the tokens that is computed
    after the first step."""

    steps: int
    fps: float
    share: float = 1.0

    @property
    def work(self) -> float:
        """Whole calls a second, but for a factor."""
        return self.fps * (1 + (self.steps - 1) * self.share)

    def __str__(self) -> str:
        part = " of what moves" if self.share < 1 else ""
        return f"{self.steps} step{'s' * (self.steps != 1)}{part} at {self.fps:g} frames a second"


def levels(steps: int, fps: float, slowest: int = SLOWEST, share: float = 1.0) -> list[Level]:
    """From all the steps down to one, by halves, each with all the tokens and with a share of them; then with a clock
    down to one part in so many, by halves. The work falls."""
    halves = [steps >> i for i in range(steps.bit_length())]
    slower = [fps / 2**i for i in range(1, slowest.bit_length())]
    parts = [Level(n, fps, share) for n in halves if n > 1 and share < 1]
    falling = sorted([*(Level(n, fps) for n in halves), *parts], key=lambda level: -level.work)
    return [*falling, *(Level(1, slow) for slow in slower)]


@dataclass
class FrameClock:
    """When frames are due: the first one when it is ready, the next ones evenly, after a lead.

    Times are seconds of one monotonic clock.

    Attributes:
        fps: frames a second, at the start.
        held: frame intervals for which the first frame stays: the lead, in which the second chunk is made.

    Raises:
        InputError: fps out of range.
    """

    fps: float
    held: int
    started: float | None = None
    missed: int = 0
    _late: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    _paces: deque[tuple[int, float, float]] = field(default_factory=lambda: deque(maxlen=PACES))  # from, due, fps

    def __post_init__(self) -> None:
        if not 0 < self.fps <= 240:
            raise InputError(bad_value("fps", "a live session", "above 0, at most 240", self.fps))
        self._paces.append((0, self.held / self.fps, self.fps))

    def due(self, frame: int) -> float:
        """Seconds after the first frame at which this one is shown; of a frame among the last ones."""
        first, due, fps = next(pace for pace in reversed(tuple(self._paces)) if pace[0] <= frame)
        return 0.0 if frame == 0 else due + (frame - first) / fps

    def run_at(self, fps: float, frame: int) -> None:
        """From this frame on there are so many a second."""
        if fps != self._paces[-1][2]:
            self._paces.append((frame, self.due(frame), fps))

    def ready(self, frame: int, now: float) -> bool:
        """A chunk whose first frame is this one is ready; returns whether it is in time. A late one moves the clock,
        as a viewer's does who waits for it."""
        if self.started is None:
            self.started = now
        late = now - self.started - self.due(frame)
        self._late.append(max(0.0, late))
        if late <= 0:
            return True
        self.missed += 1
        self.started += late
        return False

    def wait(self, frame: int, ahead: float, now: float) -> float:
        """Seconds until work on this frame's chunk should begin, to be no more than `ahead` seconds early."""
        if self.started is None:
            return 0.0
        return max(0.0, self.started + self.due(frame) - ahead - now)

    def jitter(self) -> float:
        """p99 − p50 of how late chunks were, in seconds."""
        late = np.array(self._late) if self._late else np.zeros(1)
        return float(np.percentile(late, 99) - np.percentile(late, 50))


@dataclass
class Controller:
    """Chooses what the next chunk may cost from how long the last ones took.

    Above `high` of the time that a chunk has, the next one gets a level less: one slow chunk may be chance. If that is
    too much as well, it gets what should fit. The first chunk after either is not counted, since it may have waited for
    others that are still at what was before. With so little load that the level above would stay below `high` for
    `patience` chunks, it goes back by one.

    Attributes:
        levels: falling.
        load: share of a chunk's time that work takes, smoothed.
        said: what it did, newest last.
    """

    levels: Sequence[Level]
    high: float = 0.9
    patience: int = 8
    level: int = 0
    load: float = 0.0
    said: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    _calm: int = 0
    _pressed: bool = False  # the last chunk that counted took too long
    _settling: bool = False  # the next one does not count

    @property
    def now(self) -> Level:
        return self.levels[self.level]

    def heard(self, chunk: int, spent: float, has: float) -> None:
        """A chunk took `spent` of the `has` seconds until the next one is due."""
        if self._settling:
            self._settling = False
            return
        share = spent / has
        self.load = share if self.load == 0 else SMOOTH * share + (1 - SMOOTH) * self.load
        pressed, self._pressed = self._pressed, self.load > self.high
        if self._pressed:
            below = range(self.level + 1, len(self.levels))
            fits = (level for level in below if not pressed or self._load_at(level) <= self.high)
            if below:
                self._go(chunk, next(fits, below[-1]))
                self._settling = True
            return
        self._calm = self._calm + 1 if self.level and self._load_at(self.level - 1) < self.high else 0
        if self._calm >= self.patience:
            self._go(chunk, self.level - 1)

    def _load_at(self, level: int) -> float:
        """The load of another level, if a chunk's time is in proportion to its work. It is, at most, where that is
        more: decoding does not grow; and at least where it is less."""
        return self.load * self.levels[level].work / self.now.work

    def _go(self, chunk: int, level: int) -> None:
        before, self.level, self._calm = self.now, level, 0
        self.said.append(f"chunk {chunk}: {before} took {self.load:.0%} of the time, now {self.now}")
        self.load = 0.0
