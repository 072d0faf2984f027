"""The gallery: what it shows is what the exported pipeline gives, and training does not notice that it looked."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.diffusion.samplers import flow_times
from fewstep.distill.data.seeds import generator
from fewstep.distill.engine.loop import Settings, Update, train
from fewstep.distill.export import export
from fewstep.distill.watching import grid
from fewstep.distill.watching.watch import Gallery, _in_dtypes_of, _pixels, each
from fewstep.errors import InputError
from fewstep.models.load import load
from fewstep.models.manifest import Manifest
from fewstep.zoo.tasks import task
from tests.distill.pipes import SHIFT, SIZE, pipeline, transformer

MANIFEST = Manifest(
    "tiny-2step",
    call={**SIZE, "num_inference_steps": 2, "true_cfg_scale": 1.0},
    steps=2,
    times=tuple(flow_times(2, SHIFT)),
)
PROMPTS = ("a red ring", "a small blue cross on a dark background", "two circles")


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


@pytest.fixture(scope="module")
def student():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return transformer().requires_grad_(False).train()


def gallery(pipe, folder, **more):
    return Gallery(
        pipe, MANIFEST, PROMPTS, folder, **{"every": 2, "draws": 2, "call": {"num_inference_steps": 3}, **more}
    )


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_it_shows_what_the_exported_pipeline_gives(pipe, student, tmp_path):
    seen = {}

    def score(prompts, images):
        seen["prompts"], seen["images"] = list(prompts), images
        return {"mean": images.mean()}

    line = gallery(pipe, tmp_path, score=score, batch=4, shown=2).draw(7, student)
    folder = export(copy.deepcopy(student), pipe, tmp_path / "student", MANIFEST, {"prompt": "a red ring"})
    exported = load(folder)
    exported.set_progress_bar_config(disable=True)
    noise = [generator("gallery", 0, i) for i in range(6)]
    assert seen["prompts"] == [p for p in PROMPTS for _ in range(2)]
    images = exported(seen["prompts"], generator=noise, output_type="np").images
    np.testing.assert_allclose(seen["images"], images, atol=0.6 / 255)
    assert line == lines(tmp_path)[0]
    assert list(line) == ["step", "mean", "distance"]
    assert line["mean"] == pytest.approx(images.mean(), abs=1e-3)
    shown = grid.read(tmp_path / "samples" / "step-00000007.png")
    assert shown.prompts == PROMPTS[:2]
    np.testing.assert_array_equal(shown.tiles[1, 0, ::7, ::7], (seen["images"][2] * 255).round().astype(np.uint8))


def test_the_teacher_is_drawn_once_at_its_own_steps_from_the_same_noise(pipe, student, tmp_path):
    gallery(pipe, tmp_path).draw(2, student)
    noise = [generator("gallery", 0, i) for i in range(2)]
    images = pipe([PROMPTS[0]] * 2, generator=noise, num_inference_steps=3, output_type="np").images
    shown = grid.read(tmp_path / "samples" / "teacher.png").tiles[0, :, ::7, ::7]
    np.testing.assert_allclose(shown, images * 255, atol=1)
    before = (tmp_path / "samples" / "teacher.png").stat().st_mtime_ns
    gallery(pipe, tmp_path).draw(4, student)  # as after a restart
    assert (tmp_path / "samples" / "teacher.png").stat().st_mtime_ns == before
    gallery(pipe, tmp_path, seed=1).draw(6, student)
    assert (tmp_path / "samples" / "teacher.png").stat().st_mtime_ns != before
    teacher_itself = gallery(pipe, tmp_path / "other", call={**MANIFEST.call, "negative_prompt": None})
    assert teacher_itself.draw(2, pipe.transformer)["distance"] == pytest.approx(0, abs=1e-3)


def test_nothing_is_disturbed(pipe, student, tmp_path):
    student.transformer_blocks[0].eval()  # modes may be mixed
    parts, kind, sigmas = dict(pipe.components), type(pipe), pipe.scheduler.sigmas.clone()
    modes = [part.training for part in student.modules()]
    weights = {name: value.clone() for name, value in student.state_dict().items()}
    config = dict(pipe.config)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    def score(prompts, images):
        assert not torch.is_grad_enabled()
        return {"noise": float(torch.rand(()) + random.random() + np.random.rand())}

    gallery(pipe, tmp_path, score=score).draw(2, student)
    assert dict(pipe.components) == parts
    assert type(pipe) is kind
    assert dict(pipe.config) == config
    torch.testing.assert_close(pipe.scheduler.sigmas, sigmas, rtol=0, atol=0)
    assert [part.training for part in student.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in student.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


def test_a_failure_puts_the_pipeline_back(pipe, student, tmp_path):
    def score(prompts, images):
        raise RuntimeError("score")

    broken = copy.deepcopy(student)
    broken.forward = lambda *args, **kwargs: 1 / 0
    parts = dict(pipe.components)
    with pytest.raises(ZeroDivisionError):
        gallery(pipe, tmp_path).draw(2, broken)
    with pytest.raises(RuntimeError, match="score"):
        gallery(pipe, tmp_path, score=score).draw(2, student)
    assert dict(pipe.components) == parts
    assert not (tmp_path / "metrics.jsonl").exists()


@dataclass(eq=False)
class Drift:
    """Moves the weights a little with each step, under dropout's random state."""

    net: nn.Module
    modules = property(lambda self: {"student": self.net})
    frozen = property(lambda self: {})

    def updates(self, batch, generator):
        yield Update("student", self.net, torch.rand(()) * sum(p.square().mean() for p in self.net.parameters()))


def test_a_watched_training_is_the_same_as_one_that_is_not(pipe, student, tmp_path):
    settings = Settings(steps=5, rate=1e-3, warmup=0)

    def go(name, **kwargs):
        net = copy.deepcopy(student).requires_grad_(True)
        return train(Drift(net), lambda step: None, tmp_path / name, settings, show=False, **kwargs)

    calls = []
    watch = each(gallery(pipe, tmp_path / "seen", last=5, draws=1), lambda step, averages: calls.append(step))
    seen, unseen = go("seen", watch=watch), go("unseen")
    for a, b in zip(seen.averages["student"].parameters(), unseen.averages["student"].parameters(), strict=True):
        assert torch.equal(a, b)
    assert calls == [1, 2, 3, 4, 5]
    assert [line["step"] for line in lines(tmp_path / "seen")] == [2, 4, 5]
    names = sorted(path.name for path in (tmp_path / "seen" / "samples").glob("*.png"))
    assert names == ["step-00000002.png", "step-00000004.png", "step-00000005.png", "teacher.png"]
    again = gallery(pipe, tmp_path / "seen")  # a resumed run draws step 4 again, and has not been at 5
    again(4, seen.averages)
    assert [line["step"] for line in lines(tmp_path / "seen")] == [2, 4]


def test_an_average_runs_in_the_dtypes_of_the_teacher(student):
    other = copy.deepcopy(student).half()
    other.norm_out.float()  # as diffusers keeps some layers
    ran = _in_dtypes_of(other, student)
    assert {n: p.dtype for n, p in ran.named_parameters()} == {n: p.dtype for n, p in other.named_parameters()}
    assert all(p.dtype == torch.float32 for p in student.parameters())
    assert ran.proj_out.weight.equal(student.proj_out.weight.half())
    assert _in_dtypes_of(student, student) is student


def test_a_task_can_judge(pipe, student, tmp_path):
    shapes = task("shapes")
    asks = dict(shapes.prompts(2, seed=1))
    call = {**MANIFEST.call, "height": 64, "width": 64}
    judged = Gallery(
        pipe,
        replace(MANIFEST, call=call),
        tuple(asks),
        tmp_path,
        draws=1,
        call={**call, "num_inference_steps": 1, "negative_prompt": None},
        score=lambda prompts, images: {"prompt_accuracy": shapes.accuracy([asks[p] for p in prompts], images)},
    )
    assert 0 <= judged.draw(1, student)["prompt_accuracy"] <= 1


def test_outputs_of_pipelines():
    video = np.random.default_rng(0).random((2, 5, 8, 8, 3))
    assert _pixels(SimpleNamespace(frames=video)).shape == video.shape
    assert _pixels(SimpleNamespace(images=np.full((1, 2, 2, 3), np.nan))).max() == 0
    for output in (SimpleNamespace(audios=1), SimpleNamespace(images=np.zeros((2, 8, 8)))):
        with pytest.raises(InputError, match="gives colour images or frames"):
            _pixels(output)


@pytest.mark.parametrize(("field", "value"), [("every", 0), ("draws", 0), ("batch", 0), ("shown", 0), ("prompts", ())])
def test_bad_values_are_one_sentence(pipe, tmp_path, field, value):
    with pytest.raises(InputError, match=f"'{field}' of the sample gallery must be"):
        replace(gallery(pipe, tmp_path), **{field: value})


def test_a_manifest_without_times_and_a_lonely_sample_are_refused(pipe, tmp_path):
    with pytest.raises(InputError, match="one with steps and times"):
        replace(gallery(pipe, tmp_path), manifest=replace(MANIFEST, times=None))
    with pytest.raises(InputError, match="2 or more of a single prompt"):
        replace(gallery(pipe, tmp_path), prompts=("a",), draws=1)
