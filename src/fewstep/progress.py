"""The progress bar of long work, and a Ctrl-C that lets it finish the step it is in."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def bar(title: str, total: int, done: int = 0, *, show: bool = True) -> Iterator[Callable[[int, str], None]]:
    """A bar on the terminal; call what it gives with the units done so far and a short note."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not show) as progress:
        task = progress.add_task(title, total=total, completed=done, note="")
        yield lambda units, note: progress.update(task, completed=units, note=note)


class Patience:
    """Whether the user pressed Ctrl-C (or the system said SIGTERM). A second Ctrl-C leaves at once."""

    def __init__(self) -> None:
        self.over = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.over = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def patience() -> Iterator[Patience]:
    """Inside the block Ctrl-C and SIGTERM only set `.over`; outside the main thread they keep their meaning."""
    state = Patience()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    before = {number: signal.signal(number, state) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield state
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
