"""A job from keyword arguments, a mapping or YAML; what does not fit is one sentence."""

from __future__ import annotations

import pytest

from fewstep.distill.job import Job, read_job
from fewstep.errors import InputError

LEAST = {"prompts": ["a ring"], "out": "out/x"}


def test_yaml_and_mapping_are_the_same_job(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "prompts: [a ring]\nout: out/x\nmethod: progressive\nsteps: 2\nrate: 3e-4\nhalve_from: 8\ncompile: true\n"
    )
    job = read_job(path)
    assert job == Job(["a ring"], "out/x", method="progressive", steps=2, rate=3e-4, halve_from=8, compile=True)
    assert job.stages == [4, 2]
    assert job.settings.steps == job.iterations == 4000
    assert job.settings.compile


def test_a_tasks_prompts_are_asked_of_the_caller():
    job = read_job({**LEAST, "prompts": "task:shapes"}, tasks=lambda name: [f"prompt of {name}"])
    assert job.prompts == ["prompt of shapes"]
    with pytest.raises(InputError, match="no tasks are known"):
        read_job({**LEAST, "prompts": "task:shapes"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stesp": 4}, "unknown key 'stesp'; known are prompts, out,"),
        ({"steps": 0}, "'steps' of distillation must be at least 1"),
        ({"steps": "four"}, "'steps' of The configuration must be a whole number"),
        ({"steps": 2.5}, "'steps' of The configuration must be a whole number"),
        ({"kept_steps": 6}, "'kept_steps' of distillation must be a multiple of 4"),
        ({"compile": "yes"}, "'compile' of The configuration must be true or false"),
        ({"rate": None}, "'rate' of The configuration must be a number"),
        ({"rate": -1}, "'rate' of the training loop"),
        ({"method": "magic"}, "'method' of distillation must be one of kd, progressive"),
        ({"method": "progressive", "halve_from": 12, "steps": 4}, "'teacher_steps' of progressive distillation"),
        ({"huber": -1}, "'huber' of the loss"),
        ({"iterations": 0}, "'steps' of the training loop"),
    ],
)
def test_what_does_not_fit_is_one_sentence(change, message):
    with pytest.raises(InputError, match=message) as caught:
        read_job({**LEAST, **change})
    assert "\n" not in str(caught.value)


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(InputError, match="must have the key 'prompts'"):
        read_job({"out": "x"})
    for name, text in {"list.yaml": "- a\n", "broken.yaml": "a: [\n"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=name):
            read_job(tmp_path / name)
    with pytest.raises(InputError, match=r"Could not read a configuration from .*none\.yaml"):
        read_job(tmp_path / "none.yaml")
