"""A lock that is fair: whoever waits longest has it next, and who holds it long can let the others in between."""

from __future__ import annotations

import threading
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
            if self._depth:
                return
            self._owner = None
            if self._waiting:
                self._owner, turn = self._waiting.popleft()
                self._depth = 1
                turn.release()

    def give_way(self) -> None:
        """Let everyone who waits now have a turn; the lock is the caller's before and after."""
        with self._guard:
            if not self._waiting:
                return
            depth, self._depth = self._depth, 1
        self.release()
        self.acquire()
        self._depth = depth

    def __enter__(self) -> FairLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()
