"""A run's folder: stages in order, what a kill left behind, and folders that are no run."""

from __future__ import annotations

import json

import pytest

from fewstep.bench.training.read import read_run
from fewstep.errors import InputError
from tests.bench.training import runs


def test_a_run_of_rungs_is_read_in_order(tmp_path):
    for name in ("10-dmd2", "2-kd", "1-kd"):
        runs.losses(tmp_path / name, 5)
    runs.settings(tmp_path / "2-kd", 5, steps=9, method="kd")
    found = read_run(tmp_path)
    assert [stage.name for stage in found.stages] == ["1-kd", "2-kd", "10-dmd2"]
    assert [stage.total for stage in found.stages] == [None, 9, None]
    assert found.stages[0].trained == ("student",)
    assert found.stages[0].step == 5
    assert found.stages[0].seconds == pytest.approx(5.0, abs=0.3)  # 5 steps of 0.2, and 4 more in the first
    assert not found.job


def test_the_configuration_tells_the_steps_before_there_is_a_checkpoint(tmp_path):
    runs.losses(tmp_path, 3)
    (tmp_path / "job.json").write_text(json.dumps({"iterations": 40}))
    (stage,) = read_run(tmp_path).stages
    assert (stage.name, stage.total) == ("", 40)


def test_a_killed_run_is_read_as_far_as_it_is_whole(tmp_path):
    runs.losses(tmp_path, 6)
    runs.metrics(tmp_path, 8, 2)  # of a part that is lost: it resumed from a checkpoint at 6
    runs.samples(tmp_path, 8, 4)
    with (tmp_path / "losses.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    (tmp_path / "checkpoints" / "step-00000007").mkdir(parents=True)  # without its state
    runs.settings(tmp_path, 6, steps=8)
    (stage,) = read_run(tmp_path).stages
    assert (stage.step, stage.total) == (6, 8)
    assert [line["step"] for line in stage.metrics] == [2, 4, 6]
    assert list(stage.samples) == [4]
    assert stage.teacher is not None


def test_a_run_that_has_taken_no_step_is_one(tmp_path):
    (tmp_path / "losses.jsonl").write_text("")
    (stage,) = read_run(tmp_path).stages
    assert (stage.step, stage.seconds, stage.trained) == (0, 0.0, ())


def test_what_is_no_run_is_said_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"^There is no training run in .*: neither it nor .* has a losses\.jsonl\.$"):
        read_run(tmp_path)
    with pytest.raises(InputError, match="There is no training run in"):
        read_run(tmp_path / "absent")
    runs.losses(tmp_path, 3)
    (tmp_path / "job.json").write_text("[]")
    with pytest.raises(InputError, match=r"job\.json must be a JSON object"):
        read_run(tmp_path)
