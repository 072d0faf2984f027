"""Workers as real processes: killed, failing, refusing, in groups. No model is loaded."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fewstep.batch.cluster import Cluster
from fewstep.batch.crew import Crew
from fewstep.batch.engine import Outcome, work
from fewstep.batch.schedule import Task
from fewstep.batch.worker import Build
from fewstep.errors import FewstepError, InputError, MachineError
from tests.batch.makers import Shout, Summed, dies, refused

pytestmark = pytest.mark.usefixtures("ray_here")


class Written(dict[str, bytes]):
    """What was delivered; nothing twice. `when` is called with the facts of each delivery."""

    def __init__(self, when: Callable[[int, Mapping[str, Any]], None] = lambda count, facts: None) -> None:
        self.when = when
        self.facts: list[Mapping[str, Any]] = []

    def __call__(self, task: Task, data: bytes, facts: Mapping[str, Any]) -> None:
        assert task.name not in self
        self[task.name] = data
        self.facts.append(facts)
        self.when(len(self), facts)


def words(count: int, **more: Any) -> list[Task]:
    return [Task(f"t{i}", {"text": f"word {i}", **more}) for i in range(count)]


def run(tasks: Iterable[Task], written: Written, build: Build = Shout, **crew: Any) -> Outcome:
    return work(tasks, build, Crew(**{"workers": 2, **crew}), written, title="test", show=False)


def test_each_is_made_once_by_two_processes(tmp_path: Path) -> None:
    written = Written()
    outcome = run(words(12, sleep=0.02, workers=2), written, partial(Shout, opened=tmp_path / "opened"))
    assert written == {f"t{i}": f"WORD {i}".encode() for i in range(12)}
    assert len({facts["pid"] for facts in written.facts}) == 2
    assert (outcome.made, outcome.failures, outcome.replaced) == (12, {}, 0)
    assert outcome.rate > 0
    assert outcome.facts["made"] > 0


def test_a_killed_worker_is_replaced_and_its_tasks_are_done_by_others(tmp_path: Path) -> None:
    opened = tmp_path / "opened"  # the workers' processes, in the order in which they were ready

    def kill(count: int, facts: Mapping[str, Any]) -> None:
        pids = [int(pid) for pid in opened.read_text().split()]
        victims = {1: [pid for pid in pids if pid != facts["pid"]], 12: pids[2:]}
        for pid in victims.get(count, []):
            os.kill(pid, signal.SIGKILL)

    # Each kill comes when its victim is there, and what follows waits for the next one.
    tasks = [Task(f"t{i}", {"text": f"word {i}", "sleep": 0.02, "workers": 2 + i // 10}) for i in range(30)]
    written = Written(kill)
    outcome = run(tasks, written, partial(Shout, opened=opened))
    assert written == {f"t{i}": f"WORD {i}".encode() for i in range(30)}
    assert outcome.failures == {}
    assert outcome.replaced == 2
    assert len(opened.read_text().split()) == 4


@pytest.mark.parametrize("bad", [{"error": "no such word"}, {"die": True}])
def test_what_always_fails_is_given_up_alone(bad: dict[str, Any]) -> None:
    tasks = words(7)
    tasks[2] = Task("bad", {"text": "x", **bad})
    written = Written()
    outcome = run(tasks, written, batch=3)
    assert set(written) == {"t0", "t1", "t3", "t4", "t5", "t6"}
    assert list(outcome.failures) == ["bad"]
    expected = "ValueError: no such word" if "error" in bad else "Its worker died: "
    assert outcome.failures["bad"].startswith(expected)
    assert outcome.replaced == (0 if "error" in bad else 2)


def test_many_bad_tasks_do_not_use_up_the_workers() -> None:
    tasks = [task for i, good in enumerate(words(4)) for task in (Task(f"bad{i}", {"text": "x", "die": True}), good)]
    written = Written()
    outcome = run(tasks, written, workers=1, restarts=1)
    assert set(written) == {"t0", "t1", "t2", "t3"}
    assert list(outcome.failures) == ["bad0", "bad1", "bad2", "bad3"]


def test_what_a_worker_refuses_at_its_start_ends_the_run() -> None:
    with pytest.raises(FewstepError, match=r"This maker is never right\.$"):
        run(words(2), Written(), refused)


def test_workers_that_die_at_their_start_are_given_up_loudly() -> None:
    with (
        pytest.warns(RuntimeWarning, match="died 2 times in a row and is given up"),
        pytest.raises(MachineError, match="No worker is left, and 3 outputs are not made"),
    ):
        run(words(3), Written(), dies, restarts=1)


def test_what_can_not_be_delivered_ends_the_run() -> None:
    def full(count: int, facts: Mapping[str, Any]) -> None:
        raise MachineError("The disk is full.")

    with pytest.raises(MachineError, match="full"):
        run(words(3), Written(full))


def test_a_group_works_together() -> None:
    written = Written()
    outcome = run(words(3), written, Summed, workers=1, group=2)
    assert written == {f"t{i}": f"word {i} 3 of 2".encode() for i in range(3)}
    assert outcome.failures == {}


@pytest.mark.slow
def test_a_group_whose_one_process_fails_is_begun_anew() -> None:
    tasks = [Task("bad", {"text": "x", "error": True}), *words(2)]
    written = Written()
    outcome = run(tasks, written, Summed, workers=1, group=2)
    assert set(written) == {"t0", "t1"}
    assert "rank 1 can't" in outcome.failures["bad"]
    assert outcome.replaced == 2


def test_more_than_there_is_is_refused(ray_here: Cluster) -> None:
    with pytest.raises(InputError, match=rf"'workers' of a batch must be at most {ray_here.cpus}, for "):
        run(words(1), Written(), workers=ray_here.cpus + 1, threads=1)


@pytest.mark.parametrize("name", ["workers", "threads", "batch", "group", "attempts", "restarts"])
def test_numbers_below_one(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' of a batch must be a whole number, at least 1. Got 0"):
        Crew(**{name: 0})
