"""A network with a second time is at first the network itself; folded for fixed times it is of the teacher's class."""

from __future__ import annotations

import copy
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn

from fewstep.diffusion.samplers import euler, flow_times
from fewstep.diffusion.schedule import Schedule
from fewstep.distill.engine.checkpoint import load, save
from fewstep.distill.engine.roles import Network, student_of
from fewstep.distill.jvp import difference, jvp
from fewstep.distill.mixtures import MixtureTask, ring
from fewstep.distill.schedulers import student_scheduler
from fewstep.distill.two_times import TwoTimes, along, average_velocity, fold, time_embedders, two_times
from fewstep.errors import InputError
from fewstep.models.trace import trace
from tests.models.tiny import PIPELINES

FAMILIES = ("flux_true_cfg", "flux2", "sd3", "wan_expanded", "ltx", "pixart", "sana", "hunyuan_video", "sdxl", "dit")
FAMILIES = (*FAMILIES, "cogvideox", "lumina2", "z_image", "mochi", "qwen_image")
TASK = MixtureTask(ring(5))


def stirred(student, seed=0):
    """The student, told the length by something other than zeros."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for head in student.module.heads:
            nn.init.normal_(head.weight, std=0.1)
            nn.init.normal_(head.bias, std=0.1)
    return student


def mlp_student():
    plain = TASK.student()
    return student_of(plain, TwoTimes(plain.module))


def traced(name):
    pipe, call = PIPELINES[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pipe, trace(pipe, **{**call, "num_inference_steps": 3})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pipelines_network_is_itself_until_it_learns_and_then_hears_each_samples_length(name):
    _, teacher = traced(name)
    plain, student = teacher.with_module(teacher.module), student_of(teacher, TwoTimes(teacher.module))
    student.module.eval()
    x, t, lengths = torch.cat([teacher.noise] * 2), teacher.times[1], torch.tensor([0.1, 0.7])
    with torch.no_grad():
        with student.module.over(lengths):
            torch.testing.assert_close(student(x, t), plain(x, t), rtol=1e-4, atol=1e-5)
        stirred(student)
        with student.module.over(lengths):
            both = student(x, t)
        for i, length in enumerate(lengths):
            with student.module.over(length):
                torch.testing.assert_close(student(x, t)[i], both[i], rtol=1e-3, atol=1e-4)
        assert float((both[0] - both[1]).abs().max()) > 1e-3


def test_all_that_is_new_learns():
    student, noise, labels = mlp_student(), TASK.noise(8), TASK.labels(8)
    t = torch.full((8,), 0.8)
    average_velocity(student, noise, t, t - 0.5, labels).square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in student.module.heads.parameters())
    stirred(student)
    average_velocity(student, noise, t, t - 0.5, labels).square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in student.module.parameters() if p.grad is not None)


def test_without_a_length_it_is_a_step_of_none_and_over_is_undone():
    student, noise, labels = stirred(mlp_student()), TASK.noise(8), TASK.labels(8)
    none = student(noise, 0.8, labels)
    with pytest.raises(ZeroDivisionError), student.module.over(0.5):
        assert not torch.allclose(student(noise, 0.8, labels), none)
        _ = 1 / 0
    torch.testing.assert_close(student(noise, 0.8, labels), none)
    with student.module.over(0.0):
        torch.testing.assert_close(student(noise, 0.8, labels), none)


def test_the_derivative_along_all_three_inputs_is_that_of_a_difference():
    student, labels = stirred(mlp_student()), TASK.labels(8)
    x, t, r = TASK.noise(8), torch.linspace(0.5, 1, 8), torch.linspace(0, 0.5, 8)
    moves = (TASK.noise(8, seed=1), torch.ones(8), torch.full((8,), -0.5))

    def f(x, t, r):
        return average_velocity(student, x, t, r, labels)

    exact, off = jvp(f, (x, t, r), moves)[1], difference(f, (x, t, r), moves)[1]
    torch.testing.assert_close(exact, off, rtol=1e-2, atol=1e-2)
    assert not torch.allclose(exact, jvp(f, (x, t, r), (*moves[:2], torch.zeros(8)))[1], atol=1e-2)


def test_copies_and_checkpoints_hear_their_own_length(tmp_path):
    student, noise, labels = stirred(mlp_student()), TASK.noise(8), TASK.labels(8)
    twin = student.with_module(copy.deepcopy(student.module))
    with student.module.over(0.7):
        ours = student(noise, 0.8, labels)
        assert not torch.allclose(twin(noise, 0.8, labels), ours)
    with twin.module.over(0.7):
        torch.testing.assert_close(twin(noise, 0.8, labels), ours)
    fresh = mlp_student()
    load(save(tmp_path, 1, {"student": student.module}, [], {}), {"student": fresh.module})
    with fresh.module.over(0.7):
        torch.testing.assert_close(fresh(noise, 0.8, labels), ours)


def test_along_looks_ahead_to_the_next_time():
    student, noise, labels, times = stirred(mlp_student()), TASK.noise(8), TASK.labels(8), flow_times(3, shift=2.0)
    x = noise
    for t, s in pairwise(times):
        each = torch.full((8,), t), torch.full((8,), s)
        x = x - (t - s) * average_velocity(student, x, *each, labels)
    torch.testing.assert_close(euler(along(student, times), noise, times, labels), x)


@pytest.mark.parametrize("name", ["flux_off", "hunyuan_video"])
def test_a_folded_student_runs_in_a_plain_pipeline(name):
    """A trace believes what the pipeline itself makes: its Euler steps end where ours do with two times."""
    pipe, teacher = traced(name)
    student, times = stirred(student_of(teacher, TwoTimes(teacher.module))), tuple(flow_times(3, shift=1.5))
    student.module.eval()
    plain = fold(student, times, teacher.noise)
    part = next(iter(teacher.modules))
    assert type(plain) is type(teacher.module)
    assert plain.state_dict().keys() == teacher.module.state_dict().keys()
    assert not any(embedder._forward_hooks for embedder in time_embedders(plain).values())
    setattr(pipe, part, plain)
    pipe.scheduler = student_scheduler(pipe, times)
    _, call = PIPELINES[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = trace(pipe, **{**call, "num_inference_steps": 3})
    ours = teacher.with_module(student.module)
    with torch.no_grad():
        wanted = euler(along(ours, times), again.noise, times)
        torch.testing.assert_close(again.times, times, rtol=0, atol=1e-4)
        torch.testing.assert_close(euler(again, again.noise, times), wanted, rtol=1e-3, atol=1e-3)
        assert float((euler(ours, again.noise, times) - wanted).abs().max()) > 1e-2


def test_more_steps_than_the_embedder_can_tell_apart_are_refused():
    student = stirred(mlp_student())
    noise, labels = TASK.noise(8), TASK.labels(8)
    assert isinstance(fold(student, flow_times(4), noise, labels), type(TASK.student().module))
    with pytest.raises(InputError, match=r"MLP can't hold 40 steps in its time embedder: .* Fold fewer steps"):
        fold(student, flow_times(40), noise, labels)


def test_what_can_not_be_told_two_times_is_refused():
    with pytest.raises(InputError, match="Linear can't be told a second time: it has no time embedder called"):
        TwoTimes(nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"told two times: make it of TwoTimes\(module\). Got MLP"):
        two_times(TASK.student())
    for schedule in (Schedule.edm(), Schedule.flow("x0")):
        with pytest.raises(InputError, match="'schedule' of a flow map must be a flow that predicts its velocity"):
            two_times(Network(mlp_student().module, schedule))
    student = mlp_student()
    with pytest.raises(InputError, match="3 lengths of steps do not fit"), student.module.over(torch.ones(3)):
        student(TASK.noise(8), 0.5, TASK.labels(8))
