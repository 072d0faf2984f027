"""What a rehearsal says of a job, on a small real pipeline: networks, counts, and that nothing is left behind."""

from __future__ import annotations

import numpy as np
import pytest

from fewstep.bench.rehearsal import STATES, rehearse
from fewstep.distill.data.captions import Table
from fewstep.distill.engine.optimizers import OPTIMIZERS
from fewstep.distill.job import Job, Rung
from tests.distill.pipes import pipeline

PROMPTS = ["a red ring", "two circles"]


def test_it_measures_each_rung_and_leaves_nothing(tmp_path):
    ladder = [Rung("kd", 100, 4), Rung("dmd2", 50, 2, training={"accumulate": 3}, options={"critic_steps": 1})]
    job = Job(PROMPTS, tmp_path / "run", steps=2, samples=1000, teacher_steps=4, ladder=ladder)
    found = rehearse(pipeline(), job)
    assert [(one.rung, one.steps, one.batch) for one in found.rungs] == [
        ("kd, 2 steps", 100, 4),
        ("dmd2, 2 steps", 50, 6),
    ]
    assert [role.name for role in found.rungs[1].roles] == ["student", "critic", "teacher"]
    student, critic, teacher = found.rungs[1].roles
    assert student.parameters == critic.parameters == teacher.parameters
    assert student.training_mb == pytest.approx(4 * student.weights_mb, rel=0.01)  # gradient, average, two states
    assert (teacher.trained, teacher.training_mb) == (0.0, 0.0)
    for one in found.rungs:
        assert one.hours == pytest.approx(one.seconds_a_step * one.steps / 3600)
    assert found.hours > sum(one.hours for one in found.rungs) > 0
    assert "effective batch of 6; below 64" in found.rungs[1].warnings[0]
    assert len(found.role_rows()) == 4
    assert found.time_rows()[-1]["hours"] == found.hours
    assert not (tmp_path / "run").exists()


def test_of_data_a_batch_is_read_and_the_whole_is_counted(tmp_path):
    read = []

    class Counted(Table):
        def read(self, samples):
            read.extend(samples)
            return super().read(samples)

    rows = [{"image": np.full((16, 16, 3), i, np.uint8), "text": "a red ring"} for i in range(200)]
    job = Job((), tmp_path, data=Counted(rows, "rows"), steps=1, ladder=[Rung("apt", 10, 4, options={"alone": 0.5})])
    found = rehearse(pipeline(), job)
    assert set(read) == {0, 1, 2, 3}
    assert found.paths == 200
    assert [role.name for role in found.rungs[0].roles] == ["student", "critic", "judge", "teacher"]
    assert found.paths_hours > 0
    assert found.hours > found.rungs[0].hours > 0


def test_every_optimizer_has_its_states_counted():
    assert STATES.keys() == OPTIMIZERS.keys()
