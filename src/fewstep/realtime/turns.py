"""Whose turn it is: a lock whose next holder is who waits longest, and how one that holds it long shares the time."""

from __future__ import annotations

import threading
import time
from collections import deque


class FairLock:
    """First come, first served. The thread that holds it may take it again, as of an RLock.

    A plain lock can be taken again and again by a thread that works without a pause, and the others starve.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[tuple[int, threading.Lock]] = deque()
        self._owner: int | None = None
        self._depth = 0

    def acquire(self) -> None:
        me = threading.get_ident()
        with self._guard:
            if self._owner in (None, me):
                self._owner, self._depth = me, self._depth + 1
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append((me, turn))
        turn.acquire()  # until it is handed over

    def release(self) -> None:
        with self._guard:
            self._depth -= 1
            if self._depth == 0:
                self._hand_over()

    def give_way(self, most: int | None = None) -> None:
        """Let everyone who waits now have a turn, or so many of them; the lock is the caller's before and after."""
        with self._guard:
            if not self._waiting:
                return
            depth, turn = self._depth, threading.Lock()
            turn.acquire()
            self._waiting.insert(len(self._waiting) if most is None else most, (threading.get_ident(), turn))
            self._hand_over()
        turn.acquire()
        self._depth = depth

    @property
    def waiting(self) -> int:
        """How many wait for it."""
        return len(self._waiting)

    def _hand_over(self) -> None:
        """To who waits longest, if anybody does; under the guard."""
        self._owner = None
        if self._waiting:
            self._owner, turn = self._waiting.popleft()
            self._depth = 1
            turn.release()

    def __enter__(self) -> FairLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


class HalfTheTime:
    """Called again and again by who holds the lock for long: lets one who waits have a turn, once the caller has worked
    as long as the last one took. So neither starves, however short the turns of either are."""

    def __init__(self, lock: FairLock) -> None:
        self._lock, self._took, self._since = lock, 0.0, time.monotonic()

    def __call__(self) -> None:
        left = time.monotonic()
        if left - self._since >= self._took:
            self._lock.give_way(most=1)
            self._since = time.monotonic()
            self._took = self._since - left
