"""The account of tasks, under any order of success and failure."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fewstep.batch.schedule import Schedule, Task, groups


def tasks(kinds: list[int]) -> list[Task]:
    return [Task(f"t{i}", {}, kind) for i, kind in enumerate(kinds)]


@given(st.lists(st.integers(0, 3)), st.integers(1, 5))
def test_groups_hold_each_task_once_and_one_kind(kinds: list[int], batch: int) -> None:
    found = groups(tasks(kinds), batch)
    assert sorted(task.name for group in found for task in group) == sorted(f"t{i}" for i in range(len(kinds)))
    assert all(len({task.kind for task in group}) == 1 for group in found)
    assert all(1 <= len(group) <= batch for group in found)
    assert len(found) == sum(-(-count // batch) for count in Counter(kinds).values())


@given(st.lists(st.integers(0, 2)), st.integers(1, 4), st.integers(1, 3), st.data())
def test_each_task_ends_made_or_given_up(kinds: list[int], batch: int, attempts: int, data: st.DataObject) -> None:
    schedule = Schedule.of(tasks(kinds), batch, attempts)
    out, made, failed = [], Counter[str](), Counter[str]()
    while not schedule.over:
        assert schedule.total == len(kinds)
        if out and (not schedule.waiting or data.draw(st.booleans())):
            group = out.pop(data.draw(st.integers(0, len(out) - 1)))
            if data.draw(st.booleans()):
                schedule.made(group)
                made.update(task.name for task in group)
            else:
                schedule.failed(group, "why")
                failed.update(task.name for task in group)
        else:
            out.append(schedule.take())
    names = {f"t{i}" for i in range(len(kinds))}
    assert names == {*made, *schedule.failures}
    assert not {*made} & {*schedule.failures}
    assert set(made.values()) <= {1}
    assert {name for name, times in failed.items() if times == attempts} == {*schedule.failures}
    assert schedule.done == len(made)
    assert schedule.take() == ()


def test_companions_of_a_bad_task_go_on_alone_and_behind() -> None:
    schedule = Schedule.of(tasks([0] * 4), batch=2, attempts=2)
    first = schedule.take()
    schedule.failed(first, "why")
    assert [[task.name for task in group] for group in schedule.waiting] == [["t2", "t3"], ["t0"], ["t1"]]
