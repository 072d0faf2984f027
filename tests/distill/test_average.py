"""The average of students is a student: its weights are the mean of theirs, and its folder is a plain pipeline."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline

from fewstep.diffusion.samplers import flow_times
from fewstep.distill.average import average, mean_of
from fewstep.distill.export import export
from fewstep.distill.job import Job, Rung
from fewstep.distill.run import distill
from fewstep.errors import InputError
from fewstep.models.load import load
from fewstep.models.manifest import Manifest, manifest_of
from tests.distill.pipes import SHIFT, SIZE, pipeline, transformer

EXAMPLE = {"prompt": "a red ring"}


def manifest(steps, **values):
    call = {**SIZE, "num_inference_steps": steps, "true_cfg_scale": 1.0}
    given = {"steps": steps, "times": tuple(flow_times(steps, SHIFT)), "guidance_inside": True, "teacher": "tiny"}
    return Manifest(f"tiny-{steps}step", call=call, **{**given, **values})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Students of one step and of four, the teacher's folder, and pipelines that do not go with the first."""
    place, teacher = tmp_path_factory.mktemp("students"), pipeline()
    teacher.save_pretrained(place / "teacher")
    torch.manual_seed(5)
    told = {"one": manifest(1), "same": manifest(1), "four": manifest(4)}
    told |= {"other": manifest(1, teacher="another"), "unguided": manifest(1, guidance_inside=False)}
    for name, said in told.items():
        export(transformer(), teacher, place / name, said, EXAMPLE, share=place / "teacher")
    config = {**transformer().config, "num_single_layers": 2}
    wider = type(transformer())(**config)
    export(wider, teacher, place / "wider", manifest(1), EXAMPLE, share=place / "teacher")
    return place


def weights(pipe):
    return torch.cat([value.flatten() for value in pipe.transformer.state_dict().values()])


def test_its_weights_are_the_mean_and_diffusers_runs_it_alone(made, tmp_path):
    one, four = str(made / "one"), str(made / "four")
    folder = average({one: 0.25, four: 0.75}, tmp_path / "two", steps=2, shift=2.0, sampler="renoise")
    expected = 0.25 * weights(load(one)) + 0.75 * weights(load(four))
    torch.testing.assert_close(weights(load(folder)), expected)
    plain = DiffusionPipeline.from_pretrained(folder)
    plain.set_progress_bar_config(disable=True)
    plain("a red ring", **SIZE, num_inference_steps=2, output_type="latent")
    assert plain.scheduler.config.stochastic_sampling
    torch.testing.assert_close(plain.scheduler.sigmas.double(), torch.tensor([1.0, 2 / 3, 0.0], dtype=torch.float64))
    told = manifest_of(load(folder))
    assert told is not None
    assert (told.name, told.steps, told.sampler, told.teacher) == ("tiny-2step", 2, "renoise", "tiny")
    assert told.call == manifest(2).call
    assert [(each["student"], each["weight"]) for each in told.made_by["averaged"]] == [
        ("tiny-1step", 0.25),
        ("tiny-4step", 0.75),
    ]


def test_times_are_those_of_the_student_with_the_most_steps_and_parts_can_be_shared(made, tmp_path):
    students = {str(made / "one"): 1.5, str(made / "four"): -0.5}
    folder = average(students, tmp_path / "two", steps=2, name="mine", share=made / "teacher")
    told = manifest_of(load(folder))
    assert told is not None
    assert told.times == pytest.approx(flow_times(2, SHIFT))
    assert (told.name, told.sampler, sorted(told.shares)[-1]) == ("mine", "euler", "vae")
    assert not (folder / "vae").exists()


def test_a_training_can_start_from_it(made, tmp_path):
    start = {str(made / "one"): 0.5, str(made / "four"): 0.5}
    still = Rung("kd", 1, 2, training={"rate": 1e-12, "warmup": 0})
    small = {"steps": 1, "samples": 2, "teacher_steps": 1, "check_every": 0, "show_every": 0}
    call = {**SIZE, "negative_prompt": ""}
    job = Job(["a red ring", "a blue square"], tmp_path, ladder=[still], start=start, call=call, **small)
    folder = distill(load(made / "teacher"), job, show=False)
    torch.testing.assert_close(weights(load(folder)), weights(mean_of(start).pipe))
    told = manifest_of(load(folder))
    assert told is not None
    assert told.made_by["start"] == start


@pytest.mark.parametrize(
    ("students", "options", "named"),
    [
        ({"one": 1.0}, {}, "'students' of an average must be two or more"),
        ({"one": 0.5, "four": 0.6}, {}, "'weights' of an average must be numbers that add up to 1"),
        ({"one": float("nan"), "four": 0.5}, {}, "'weights' of an average"),
        ({"one": "half", "four": 0.5}, {}, "'weights' of an average"),
        ({"one": 0.5, "same": 0.5}, {}, "'shift' of an average must be given"),
        ({"one": 0.5, "teacher": 0.5}, {}, "teacher is no student"),
        ({"one": 0.5, "other": 0.5}, {}, "other can't be averaged with .*one: its 'teacher' is 'another', and not"),
        ({"one": 0.5, "unguided": 0.5}, {}, "its 'guidance_inside' is False, and not True"),
        ({"one": 0.5, "wider": 0.5}, {}, "'single_transformer_blocks.1.* is not the same tensor in both"),
        ({"one": 0.5, "four": 0.5}, {"steps": 0}, "'steps' of an average must be at least 1"),
        ({"one": 0.5, "four": 0.5}, {"sampler": "heun"}, "'sampler' of an average must be one of renoise, euler"),
    ],
)
def test_what_does_not_go_together_is_named(made, tmp_path, students, options, named):
    given = {str(made / name): weight for name, weight in students.items()}
    with pytest.raises(InputError, match=named):
        average(given, tmp_path / "bad", **{"steps": 2, **options})
    assert not (tmp_path / "bad").exists()
