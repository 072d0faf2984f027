"""What is still to be made, by whom next, and what is given up. Pure: knows no process and no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Task:
    """One output to make.

    Attributes:
        name: of the output; no other has it.
        item: what the worker is told, as plain data.
        kind: tasks of equal kind may be made in one call.
    """

    name: str
    item: dict[str, Any]
    kind: Hashable = None


Group = tuple[Task, ...]


@dataclass
class Schedule:
    """Hands out groups of tasks of one kind, and keeps account of them.

    A group that failed comes back as single tasks, so that one bad task does not take its companions with it, and
    behind all others, so that it does not hold them up. A task that failed `attempts` times is given up.
    """

    waiting: deque[Group]
    attempts: int
    failures: dict[str, str] = field(default_factory=dict)  # of what is given up: name -> why
    done: int = 0
    _tried: dict[str, int] = field(default_factory=dict)
    _out: int = 0

    @classmethod
    def of(cls, tasks: Iterable[Task], batch: int, attempts: int) -> Schedule:
        return cls(deque(groups(tasks, batch)), attempts)

    @property
    def total(self) -> int:
        return self.settled + self._out + sum(map(len, self.waiting))

    @property
    def over(self) -> bool:
        return not self.waiting and not self._out

    @property
    def settled(self) -> int:
        """Tasks that nothing more happens to."""
        return self.done + len(self.failures)

    def take(self) -> Group:
        """The next group to make; empty where none waits."""
        if not self.waiting:
            return ()
        group = self.waiting.popleft()
        self._out += len(group)
        return group

    def suspects(self, group: Group) -> bool:
        """Whether one of them has failed before."""
        return any(task.name in self._tried for task in group)

    def made(self, group: Group) -> None:
        self._out -= len(group)
        self.done += len(group)

    def failed(self, group: Group, why: str) -> None:
        self._out -= len(group)
        for task in group:
            self._tried[task.name] = self._tried.get(task.name, 0) + 1
            if self._tried[task.name] < self.attempts:
                self.waiting.append((task,))
            else:
                self.failures[task.name] = why


def groups(tasks: Iterable[Task], batch: int) -> list[Group]:
    """Tasks of one kind together, `batch` at most, in the order in which their first one comes."""
    kinds: dict[Hashable, list[Task]] = {}
    for task in tasks:
        kinds.setdefault(task.kind, []).append(task)
    return [part for same in kinds.values() for part in _parts(same, batch)]


def _parts(tasks: Sequence[Task], size: int) -> list[Group]:
    return [tuple(tasks[start : start + size]) for start in range(0, len(tasks), size)]
