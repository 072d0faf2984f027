"""The folder of results: files named by our own ids alone, kept for a while and up to a size."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.files import replacing
from fewstep.server.config import Limits
from fewstep.server.jobs import Jobs, Stored

HOUR, GB = 3600.0, 1e9


@dataclass(frozen=True)
class Results:
    """Writes, finds and clears away the files of one server.

    Attributes:
        folder: of the files.
        jobs: where their rows are.
        limits: how long and how much is kept.
        clock: seconds since 1970.
    """

    folder: Path
    jobs: Jobs
    limits: Limits
    clock: Callable[[], float] = time.time

    def write(self, id: str, suffix: str, fill: Callable[[Path], object]) -> Stored:
        """A whole file in its place; its row is the caller's to write next.

        Raises:
            MachineError: the disk is full or can't be written to.
        """
        place, now = self.folder / f"{id}.{suffix}", self.clock()
        with replacing(place) as aside:
            fill(aside)
        return Stored(id, suffix, place.stat().st_size, now, self.expires_at(now))

    def expires_at(self, made: float) -> float:
        """When the time of what was made then is over."""
        return made + self.limits.keep_hours * HOUR

    def path(self, id: str) -> Path | None:
        """Where the file of a result is; None where there is none, or its time is over."""
        file = self.jobs.file(id)
        if file is None or file.expires_at <= self.clock():
            return None
        place = self.folder / file.name
        return place if place.is_file() else None

    def discard(self, file: Stored) -> None:
        (self.folder / file.name).unlink(missing_ok=True)

    def delete(self, id: str) -> bool:
        """Delete a job and its file, the row first: a crash between leaves waste, never a row without a file."""
        file = self.jobs.file(id)
        deleted = self.jobs.delete(id)
        if file:
            self.discard(file)
        return deleted

    def sweep(self) -> int:
        """Delete what is over its time or too much, and say how many bytes are left."""
        now, files = self.clock(), self.jobs.files()
        gone = too_many(files, now, int(self.limits.keep_gb * GB))
        for file in gone:
            self.delete(file.id)
        self.jobs.forget(before=now - self.limits.keep_hours * HOUR)
        return sum(file.bytes for file in files) - sum(file.bytes for file in gone)

    def tidy(self) -> int:
        """At the start: delete what a crash left half-done, and say how many files that were."""
        known = {file.name for file in self.jobs.files()}
        waste = [place for place in self.folder.iterdir() if place.name not in known]
        for place in waste:
            shutil.rmtree(place) if place.is_dir() else place.unlink()
        return len(waste)


def too_many(files: Sequence[Stored], now: float, most: int) -> list[Stored]:
    """Of the files, the oldest first, those to delete: over their time, or the oldest until `most` bytes are left."""
    gone = [file for file in files if file.expires_at <= now]
    kept = [file for file in files if file.expires_at > now]
    over = sum(file.bytes for file in kept) - most
    return gone + list(_oldest(kept, over))


def _oldest(files: Iterable[Stored], over: int) -> Iterable[Stored]:
    for file in files:
        if over <= 0:
            return
        over -= file.bytes
        yield file
