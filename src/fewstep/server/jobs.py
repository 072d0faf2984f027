"""The video jobs and the results, in SQLite: whatever was accepted is still there after a crash.

A job is `queued`, then `in_progress`, then `completed` or `failed`. A result is first a whole file in its place, then a
row: a file without a row is waste of a crash, and removed at the next start; a row without a file is never written.
Nothing here knows models or HTTP.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from fewstep.errors import MachineError

SCHEMA = """
CREATE TABLE IF NOT EXISTS videos (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL, model TEXT NOT NULL,
    prompt TEXT NOT NULL, size TEXT NOT NULL, seconds TEXT NOT NULL, work TEXT NOT NULL, status TEXT NOT NULL,
    progress INTEGER NOT NULL, attempts INTEGER NOT NULL, created_at REAL NOT NULL, ended_at REAL,
    error_code TEXT, error_message TEXT, reference BLOB
);
CREATE INDEX IF NOT EXISTS videos_by_status ON videos (status, number);
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY, suffix TEXT NOT NULL, bytes INTEGER NOT NULL, created_at REAL NOT NULL,
    expires_at REAL NOT NULL
);
"""
Status = Literal["queued", "in_progress", "completed", "failed"]
WAITING: tuple[Status, ...] = ("queued", "in_progress")
DIED = "The server failed {n} times while it made this video; it is not tried again."


class QueueFull(Exception):
    """There are as many waiting jobs as there may be; `waiting` says how many."""

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting
        super().__init__(f"{waiting} jobs wait.")


@dataclass(frozen=True)
class Job:
    """One video, as it stands. Times are seconds since 1970.

    Attributes:
        number: rises with each accepted job.
        id: what its owner knows it by.
        owner: the name of the key that asked for it.
        model: that makes it.
        prompt: what it shall show.
        size: WIDTHxHEIGHT.
        seconds: how long it is, as OpenAI writes it.
        work: all that making it takes, as JSON.
        status: as above.
        progress: 0 to 100.
        attempts: how often it was begun.
        created_at: when it was accepted.
        ended_at: when it was completed, or failed.
        expires_at: when its file goes.
        error_code: of a failure.
        error_message: of a failure.
    """

    number: int
    id: str
    owner: str
    model: str
    prompt: str
    size: str
    seconds: str
    work: Mapping[str, Any]
    status: Status
    progress: int
    attempts: int
    created_at: float
    ended_at: float | None
    expires_at: float | None
    error_code: str | None
    error_message: str | None


COLUMNS = ", ".join(f"files.{f.name}" if f.name == "expires_at" else f"videos.{f.name}" for f in fields(Job))
SELECT = f"SELECT {COLUMNS} FROM videos LEFT JOIN files ON files.id = videos.id"


@dataclass(frozen=True)
class Stored:
    """A result's file."""

    id: str
    suffix: str
    bytes: int
    created_at: float
    expires_at: float

    @property
    def name(self) -> str:
        return f"{self.id}.{self.suffix}"


class Jobs:
    """All jobs and results of one server. Every call is one transaction; any thread may call.

    Raises:
        MachineError: another server uses the file, or it can't be written to.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")  # one server a folder; ends with the process, however it ends
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            raise MachineError(f"Could not use {path}: {error}. Give each server a --folder of its own.") from None
        self._db.execute("PRAGMA synchronous=FULL")  # an accepted job outlives a power cut, not only a crash
        self._db.executescript(SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def add(self, job: Mapping[str, Any], *, now: float, most: int) -> Job:
        """Accept a job: id, owner, model, prompt, size, seconds, work, and the bytes of a picture to start from.

        Raises:
            QueueFull: `most` of them are queued already.
        """
        row = {"reference": None, **job, "work": json.dumps(job["work"]), "created_at": now}
        with self._transaction() as db:
            waiting = self.count("queued")
            if waiting >= most:
                raise QueueFull(waiting)
            db.execute(
                "INSERT INTO videos (id, owner, model, prompt, size, seconds, work, status, progress, attempts, "
                "created_at, reference) VALUES (:id, :owner, :model, :prompt, :size, :seconds, :work, 'queued', 0, 0, "
                ":created_at, :reference)",
                row,
            )
            made = self.get(row["id"])
        assert made is not None
        return made

    def get(self, id: str) -> Job | None:
        return next(iter(self._jobs("WHERE videos.id = ?", id)), None)

    def reference(self, id: str) -> bytes | None:
        """The picture that a job starts from; kept until the job ends."""
        with self._lock:
            row = self._db.execute("SELECT reference FROM videos WHERE id = ?", (id,)).fetchone()
        return row[0] if row else None

    def page(self, owner: str, *, after: Job | None, limit: int, newest_first: bool) -> list[Job]:
        """An owner's jobs in the order of their making, `limit` at most, from the one after `after` on."""
        order, than = ("DESC", "<") if newest_first else ("ASC", ">")
        beyond = f"AND videos.number {than} {after.number}" if after else ""
        return self._jobs(f"WHERE videos.owner = ? {beyond} ORDER BY videos.number {order} LIMIT ?", owner, limit)

    def count(self, *statuses: Status, owner: str | None = None) -> int:
        """How many jobs are in one of these states, all or one owner's."""
        marks, mine = ", ".join("?" * len(statuses)), "" if owner is None else "AND owner = ?"
        asked = (*statuses, *([] if owner is None else [owner]))
        with self._lock:
            query = f"SELECT COUNT(*) FROM videos WHERE status IN ({marks}) {mine}"
            return int(self._db.execute(query, asked).fetchone()[0])

    def take(self, *, attempts: int, now: float) -> Job | None:
        """Begin the oldest job that waits; None where there is none.

        There is one taker: a job that is running when it comes was interrupted, and is begun again. One that was begun
        `attempts` times may be what ends the server, and fails.
        """
        waits = f"status IN {WAITING}"
        with self._transaction() as db:
            db.execute(
                "UPDATE videos SET status = 'failed', reference = NULL, error_code = 'server_error', "
                f"error_message = ?, ended_at = ? WHERE {waits} AND attempts >= ?",
                (DIED.format(n=attempts), now, attempts),
            )
            first = next(iter(self._jobs(f"WHERE videos.{waits} ORDER BY videos.number LIMIT 1")), None)
            if first is None:
                return None
            db.execute(
                "UPDATE videos SET status = 'in_progress', progress = 0, attempts = attempts + 1 WHERE id = ?",
                (first.id,),
            )
            return self.get(first.id)

    def progress(self, id: str, percent: int) -> bool:
        """Note how far a running job is; False where its owner deleted it."""
        return self._changed("UPDATE videos SET progress = ? WHERE id = ? AND status = 'in_progress'", percent, id)

    def complete(self, id: str, file: Stored) -> bool:
        """The job's file is in its place; False where its owner deleted the job."""
        with self._transaction() as db:
            changed = self._changed(
                "UPDATE videos SET status = 'completed', progress = 100, reference = NULL, ended_at = ? "
                "WHERE id = ? AND status = 'in_progress'",
                file.created_at,
                id,
            )
            if changed:
                _insert(db, file)
            return changed

    def fail(self, id: str, code: str, message: str, *, now: float) -> bool:
        return self._changed(
            "UPDATE videos SET status = 'failed', reference = NULL, error_code = ?, error_message = ?, ended_at = ? "
            "WHERE id = ? AND status = 'in_progress'",
            code,
            message,
            now,
            id,
        )

    def requeue(self) -> None:
        """After a start: jobs that were running wait again, in their old place."""
        self._changed("UPDATE videos SET status = 'queued', progress = 0 WHERE status = 'in_progress'")

    def put_back(self, id: str) -> None:
        """A running job waits again, as if it had not been begun: the server is told to stop."""
        self._changed(
            "UPDATE videos SET status = 'queued', progress = 0, attempts = attempts - 1 "
            "WHERE id = ? AND status = 'in_progress'",
            id,
        )

    def delete(self, id: str) -> bool:
        with self._transaction() as db:
            db.execute("DELETE FROM files WHERE id = ?", (id,))
            return self._changed("DELETE FROM videos WHERE id = ?", id)

    def store(self, file: Stored) -> None:
        """A result that is no job's: a picture."""
        with self._transaction() as db:
            _insert(db, file)

    def file(self, id: str) -> Stored | None:
        with self._lock:
            row = self._db.execute("SELECT * FROM files WHERE id = ?", (id,)).fetchone()
        return Stored(*row) if row else None

    def files(self) -> list[Stored]:
        """All results, the oldest first."""
        with self._lock:
            return [Stored(*row) for row in self._db.execute("SELECT * FROM files ORDER BY created_at, id")]

    def forget(self, *, before: float) -> None:
        """Delete jobs that failed before this time."""
        self._changed("DELETE FROM videos WHERE status = 'failed' AND ended_at <= ?", before)

    def _jobs(self, where: str, *values: Any) -> list[Job]:
        with self._lock:
            rows = self._db.execute(f"{SELECT} {where}", values).fetchall()
        names = [f.name for f in fields(Job)]
        return [_job(dict(zip(names, row, strict=True))) for row in rows]

    def _changed(self, statement: str, *values: Any) -> bool:
        with self._lock:
            return self._db.execute(statement, values).rowcount > 0

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")


def _insert(db: sqlite3.Connection, file: Stored) -> None:
    values = (file.id, file.suffix, file.bytes, file.created_at, file.expires_at)
    db.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?)", values)


def _job(row: dict[str, Any]) -> Job:
    return Job(**{**row, "work": json.loads(row["work"])})
