"""A job from keyword arguments, a mapping or YAML; what does not fit is one sentence."""

from __future__ import annotations

import pytest

from fewstep.distill.job import Job, Rung, read_job
from fewstep.errors import InputError
from fewstep.zoo.drawn import Drawn

LEAST = {"prompts": ["a ring"], "out": "out/x"}


def test_yaml_and_mapping_are_the_same_job(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "prompts: [a ring]\nout: out/x\nmethod: progressive\nsteps: 2\nrate: 3e-4\nhalve_from: 8\ncompile: true\n"
    )
    job = read_job(path)
    rung = Rung("progressive", halve_from=8, training={"rate": 3e-4, "compile": True})
    assert job == Job(["a ring"], "out/x", steps=2, ladder=(rung,))
    assert [(rung.method, rung.steps) for rung in job.rungs] == [("progressive", 4), ("progressive", 2)]
    settings = job.rungs[0].settings(5)
    assert (settings.steps, settings.rate, settings.compile, settings.seed) == (4000, 3e-4, True, 5)


def test_keys_beside_a_ladder_hold_for_all_rungs():
    ladder = [{"method": "kd", "iterations": 10}, {"method": "dmd2", "critic_steps": 2, "rate": 1e-4, "steps": 2}]
    job = read_job({**LEAST, "batch": 8, "compile": True, "steps": 4, "ladder": ladder})
    first, second = job.rungs
    assert (first.iterations, first.batch, first.steps, second.batch, second.steps) == (10, 8, 4, 8, 2)
    assert (dict(first.options), dict(second.options)) == ({}, {"critic_steps": 2})
    assert first.settings(0).compile
    assert second.settings(0).compile
    assert second.settings(0).rate == 1e-4
    assert second.settings(0).betas == second.card.betas
    assert (job.kept, job.stepping) == (4, "euler")


def test_a_tasks_prompts_are_asked_of_the_caller():
    job = read_job({**LEAST, "prompts": "task:shapes"}, tasks=lambda name: [f"prompt of {name}"])
    assert job.prompts == ["prompt of shapes"]
    with pytest.raises(InputError, match="no tasks are known"):
        read_job({**LEAST, "prompts": "task:shapes"})


def test_a_tasks_data_is_drawn_by_the_caller():
    live = {"method": "causal_kd", "window": 3}
    values = {**LEAST, **live, "data": "task:moving-shapes", "samples": 20, "seed": 3, "frames": 25}
    job = read_job(values, drawn=Drawn)
    assert job.data == Drawn("moving-shapes", 20, 3, 25)
    assert job.facts()["data"] == {"task": "moving-shapes", "samples": 20, "seed": 3, "frames": 25}
    (one,) = job.data.read(range(4, 5))
    assert one.media.shape == (25, 64, 64, 3)
    assert one.caption
    with pytest.raises(InputError, match="no tasks are known"):
        read_job(values)
    with pytest.raises(InputError, match="'frames' of data of the task shapes must be left out, as it has pictures"):
        read_job({**values, "data": "task:shapes"}, drawn=Drawn)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stesp": 4}, "unknown key 'stesp'; known are prompts, out,"),
        ({"steps": 0}, "'steps' of distillation must be at least 1"),
        ({"data": "clips"}, "'data' of distillation must be left out: prompts are given, and no method takes it"),
        ({"frames": 25}, "'frames' of distillation must be left out where there is no data"),
        ({"latents": "shared"}, "'latents' of distillation must be left out where there is no data"),
        ({"steps": "four"}, "'steps' of The configuration must be a whole number"),
        ({"steps": 2.5}, "'steps' of The configuration must be a whole number"),
        ({"teacher_precision": "fp8"}, "'teacher_precision' of distillation must be one of None, fp32, bf16"),
        ({"method": "dmd2", "teacher_precision": "bf16"}, "'teacher_precision' .* left out: no teacher paths are made"),
        ({"method": "dmd2", "kept_steps": 4}, "'kept_steps' of distillation must be left out: no teacher paths"),
        ({"method": "dmd2", "paths": "p"}, "'paths' of distillation must be left out: no teacher paths are made"),
        ({"kept_steps": 6}, "'kept_steps' of distillation must be a multiple of 4"),
        ({"compile": "yes"}, "'compile' of The configuration must be true or false"),
        ({"rate": None}, "'rate' of The configuration must be a number"),
        ({"method": "dmd2", "critic_steps": 1.5}, "'critic_steps' of The method 'dmd2' must be a whole number"),
        ({"critic_steps": 2}, "unknown key 'critic_steps'"),
        ({"ladder": {"method": "kd"}}, "'ladder' of The configuration must be a list of rungs"),
        ({"ladder": []}, "'ladder' of distillation must be one rung or more"),
        ({"halve_from": 8}, "'halve_from' of a rung must be given to progressive alone"),
        ({"method": "consistency", "sampler": "euler"}, "'sampler' of distillation must be renoise for consistency"),
        ({"method": "meanflow", "roles": "lora"}, "meanflow tells the network a second time"),
        ({"roles": "shared"}, "'roles' of The configuration must be one of copies, lora"),
        ({"rate": -1}, "'rate' of the training loop"),
        ({"method": "magic"}, "'method' of distillation must be one of kd, perceptual, reflow"),
        ({"method": "progressive", "halve_from": 12, "steps": 4}, "'teacher_steps' of progressive distillation"),
        ({"huber": -1}, "'huber' of the loss"),
        ({"iterations": 0}, "'iterations' of a rung must be at least 1"),
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
    with pytest.raises(InputError, match=r"There is no file .*none\.yaml"):
        read_job(tmp_path / "none.yaml")


def test_what_tells_a_training_apart_hides_none_of_its_settings():
    rung = Job(["a ring"], "out/x", steps=2).rungs[0]
    assert not rung.facts().keys() & vars(rung.settings(0)).keys()
    assert rung.facts()["student_steps"] == 2
