"""The store alone: what was accepted is kept, in order, once, whenever the process dies."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fewstep.errors import MachineError
from fewstep.server.config import Limits
from fewstep.server.jobs import Job, Jobs, QueueFull, Stored
from fewstep.server.results import Results


def row(id: str, owner: str = "a") -> dict[str, Any]:
    same = {"model": "m", "prompt": "a", "size": "64x64", "seconds": "1", "work": {"seed": 1}}
    return {"id": id, "owner": owner, **same}


def stored(id: str, at: float = 0.0) -> Stored:
    return Stored(id, "mp4", 10, at, at + 100)


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    made = Jobs(tmp_path / "jobs.sqlite")
    yield made
    made.close()


def add(jobs: Jobs, *ids: str, owner: str = "a") -> None:
    for id in ids:
        jobs.add(row(id, owner), now=1.0, most=100)


def take(jobs: Jobs, attempts: int = 5) -> Job | None:
    return jobs.take(attempts=attempts, now=1.0)


def test_a_job_s_life(jobs: Jobs) -> None:
    add(jobs, "x", "y")
    first = take(jobs)
    assert first
    assert (first.id, first.status, first.attempts, first.work) == ("x", "in_progress", 1, {"seed": 1})
    assert jobs.progress("x", 40)
    found = jobs.get("x")
    assert found
    assert (found.progress, found.ended_at) == (40, None)
    assert jobs.complete("x", stored("x", at=5.0))
    found = jobs.get("x")
    assert found
    assert (found.status, found.progress, found.ended_at, found.expires_at) == ("completed", 100, 5.0, 105.0)
    second = take(jobs)
    assert second
    assert second.id == "y"
    assert jobs.fail("y", "out_of_memory", "Too large.", now=1.0)
    found = jobs.get("y")
    assert found
    assert (found.status, found.error_code, found.error_message) == ("failed", "out_of_memory", "Too large.")
    assert take(jobs) is None


def test_a_job_ends_once(jobs: Jobs) -> None:
    add(jobs, "x")
    assert not jobs.complete("x", stored("x"))  # not begun
    take(jobs)
    assert jobs.complete("x", stored("x"))
    assert not jobs.complete("x", stored("x"))
    assert not jobs.fail("x", "c", "m", now=1.0)
    assert not jobs.progress("x", 1)


def test_a_deleted_job_can_not_be_completed(jobs: Jobs) -> None:
    add(jobs, "x")
    take(jobs)
    assert jobs.delete("x")
    assert not jobs.progress("x", 5)
    assert not jobs.complete("x", stored("x"))
    assert jobs.files() == []


def test_the_queue_is_bounded(jobs: Jobs) -> None:
    for id in ("x", "y"):
        jobs.add(row(id), now=1.0, most=2)
    with pytest.raises(QueueFull):
        jobs.add(row("z"), now=1.0, most=2)
    assert jobs.get("z") is None
    take(jobs)  # a running job waits no more
    jobs.add(row("z"), now=1.0, most=2)


def test_pages_hold_the_owner_s_jobs_alone(jobs: Jobs) -> None:
    add(jobs, "1", "2", "3")
    add(jobs, "4", owner="b")
    ids = [job.id for job in jobs.page("a", after=None, limit=2, newest_first=True)]
    assert ids == ["3", "2"]
    assert [job.id for job in jobs.page("a", after=jobs.get("2"), limit=9, newest_first=True)] == ["1"]
    assert [job.id for job in jobs.page("a", after=jobs.get("2"), limit=9, newest_first=False)] == ["3"]
    assert jobs.count("queued", owner="a") == 3
    assert jobs.count("queued", "in_progress") == 4


def test_after_a_crash_running_jobs_wait_again_in_their_place(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "j")
    add(jobs, "x", "y")
    take(jobs)
    jobs.close()
    again = Jobs(tmp_path / "j")
    again.requeue()
    assert again.count("queued") == 2
    taken = take(again)
    assert taken
    assert (taken.id, taken.attempts) == ("x", 2)
    again.requeue()
    following = take(again, attempts=2)  # the first may be what ends the server
    assert following
    assert following.id == "y"
    found = again.get("x")
    assert found
    assert (found.status, found.ended_at) == ("failed", 1.0)
    assert "failed 2 times" in (found.error_message or "")


def test_a_job_that_was_left_running_is_taken_again(jobs: Jobs) -> None:
    add(jobs, "x", "y")
    take(jobs)
    taken = take(jobs)
    assert taken
    assert (taken.id, taken.attempts) == ("x", 2)


def test_a_stop_is_no_attempt(jobs: Jobs) -> None:
    add(jobs, "x")
    take(jobs)
    jobs.put_back("x")
    taken = take(jobs)
    assert taken
    assert taken.attempts == 1


def test_a_picture_to_start_from_is_kept_until_the_end(jobs: Jobs) -> None:
    jobs.add({**row("x"), "reference": b"png"}, now=1.0, most=9)
    take(jobs)
    assert jobs.reference("x") == b"png"
    jobs.complete("x", stored("x"))
    assert jobs.reference("x") is None


def test_one_server_a_folder(tmp_path: Path) -> None:
    first = Jobs(tmp_path / "j")
    with pytest.raises(MachineError, match="a --folder of its own"):
        Jobs(tmp_path / "j")
    first.close()
    Jobs(tmp_path / "j").close()


# A process that accepts jobs and makes them, and says on stdout what it promised to its clients.
BUSY = """
import sys, threading
from contextlib import closing
from pathlib import Path
from fewstep.server.config import Limits
from fewstep.server.jobs import Jobs
from fewstep.server.results import Results

folder, start = Path(sys.argv[1]), int(sys.argv[2])
jobs = Jobs(folder / "jobs.sqlite")
results = Results(folder / "results", jobs, Limits())
results.tidy()
jobs.requeue()

def accept():
    for i in range(start, start + 10**6):
        same = {"owner": "a", "model": "m", "prompt": "a", "size": "64x64", "seconds": "1", "work": {}}
        jobs.add({"id": f"video_{i}", **same}, now=1.0, most=10**9)
        print(i, flush=True)

threading.Thread(target=accept, daemon=True).start()
while True:
    if job := jobs.take(attempts=10**6, now=1.0):
        def fill(path):
            with path.open("w") as file:
                for part in range(20):
                    file.write(job.id + "\\n")
                    file.flush()
        jobs.complete(job.id, results.write(job.id, "mp4", fill))
"""


def kill_at_random(folder: Path, times: int) -> None:
    (folder / "results").mkdir()
    accepted: list[int] = []
    chance = random.Random(0)
    for _ in range(times):
        line = [sys.executable, "-c", BUSY, str(folder), str(len(accepted))]
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            accepted.append(int(process.stdout.readline()))
            time.sleep(chance.uniform(0.0, 0.3))
            process.send_signal(signal.SIGKILL)
            accepted += [int(said) for said in process.stdout.read().split("\n") if said]
        accepted = list(range(max(accepted) + 1))  # the last may be accepted, and its word lost
        with closing(sqlite3.connect(folder / "jobs.sqlite")) as db:
            held = {id for (id,) in db.execute("SELECT id FROM videos")}
            done = {id for (id,) in db.execute("SELECT id FROM videos WHERE status = 'completed'")}
            running = db.execute("SELECT COUNT(*) FROM videos WHERE status = 'in_progress'").fetchone()[0]
        assert held >= {f"video_{i}" for i in accepted}
        assert running <= 1
        accepted = list(range(len(held)))
        for id in done:  # each row has its whole file
            assert (folder / "results" / f"{id}.mp4").read_text() == f"{id}\n" * 20
    assert done


def test_killed_at_random_moments(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 3)


@pytest.mark.slow
def test_killed_at_many_random_moments(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 20)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def results_in(folder: Path, jobs: Jobs, clock: Clock, **limits: Any) -> Results:
    place = folder / "results"
    place.mkdir(exist_ok=True)
    return Results(place, jobs, Limits(**limits), clock)


def kept(results: Results, id: str, size: int = 10) -> Stored:
    file = results.write(id, "png", lambda path: path.write_bytes(b"x" * size))
    results.jobs.store(file)
    return file


def test_results_go_when_their_time_is_over(tmp_path: Path, jobs: Jobs) -> None:
    clock = Clock()
    results = results_in(tmp_path, jobs, clock, keep_hours=1)
    kept(results, "old")
    clock.now = 3000.0
    kept(results, "new")
    assert results.path("old")
    clock.now = 3600.0
    assert results.path("old") is None  # before it is swept away
    assert results.sweep() == 10
    assert [place.name for place in results.folder.iterdir()] == ["new.png"]
    assert [file.id for file in jobs.files()] == ["new"]


def test_the_oldest_results_go_when_there_are_too_many(tmp_path: Path, jobs: Jobs) -> None:
    clock = Clock()
    results = results_in(tmp_path, jobs, clock, keep_gb=35e-9)
    for i in range(5):
        clock.now = float(i)
        kept(results, f"f{i}")
    assert results.sweep() == 30
    assert sorted(place.name for place in results.folder.iterdir()) == ["f2.png", "f3.png", "f4.png"]


def test_failed_jobs_are_forgotten_too(tmp_path: Path, jobs: Jobs) -> None:
    clock = Clock()
    results = results_in(tmp_path, jobs, clock, keep_hours=1)
    add(jobs, "x", "y")
    take(jobs)
    jobs.fail("x", "c", "m", now=1.0)
    clock.now = 3602.0
    results.sweep()
    assert jobs.get("x") is None
    assert jobs.get("y")


def test_what_a_crash_left_is_removed(tmp_path: Path, jobs: Jobs) -> None:
    results = results_in(tmp_path, jobs, Clock())
    kept(results, "whole")
    (results.folder / "without_row.mp4").touch()
    (results.folder / ".video_1.mp4.abc").mkdir()
    (results.folder / ".video_1.mp4.abc" / "video_1.mp4").touch()
    assert results.tidy() == 2
    assert [place.name for place in results.folder.iterdir()] == ["whole.png"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, jobs: Jobs) -> None:
    results = results_in(tmp_path, jobs, Clock())

    def full(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(MachineError, match="the disk is full"):
        results.write("x", "png", full)
    assert list(results.folder.iterdir()) == []
