"""What every method of distillation must do on a real pipeline: train, resume to the bit, and give a plain pipeline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from fewstep.distill.catalog import CATALOG
from fewstep.distill.job import Job, Rung
from fewstep.distill.run import distill
from fewstep.errors import InputError
from fewstep.models.load import load
from fewstep.models.manifest import manifest_of
from tests.distill.pipes import SIZE, pipeline, video_pipeline

PROMPTS = ["a red ring", "a small blue cross on a dark background", "two circles"]
FEW = {"critic_steps": 1, "discriminator_steps": 1, "stages": 2}


@pytest.fixture(scope="module")
def teachers():
    return {False: pipeline(), True: video_pipeline()}


@pytest.fixture
def teacher(teachers, request):
    """Of video for the methods that need it."""
    method = getattr(request.node, "callspec", None) and request.node.callspec.params.get("method")
    return teachers[bool(method) and CATALOG[method].video]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return {video: tmp_path_factory.mktemp("paths") / "shared" for video in (False, True)}


@pytest.fixture
def paths(made, request):
    method = getattr(request.node, "callspec", None) and request.node.callspec.params.get("method")
    return made[bool(method) and CATALOG[method].video]


def rung(method: str, iterations: int = 2) -> Rung:
    options = {name: value for name, value in FEW.items() if name in CATALOG[method].choices}
    extra = {"halve_from": 4} if method == "progressive" else {}
    training = {"warmup": 0, "save_every": 1, "rate": 1e-3}
    return Rung(method, iterations, 3, training=training, options=options, **extra)


def job(method: str, out: Path, paths: Path, **values: object) -> Job:
    given = {"steps": 2, "samples": 6, "teacher_steps": 4, "ladder": [rung(method)]}
    given |= {"check_every": 2, "shown": 2, "draws": 2, "show_every": 0, **values}
    if any(one.card.needs != "prompts" for one in given["ladder"]):
        given |= {"kept_steps": 2, "paths": paths}
    return Job(PROMPTS, out, **given)


def losses(out: Path) -> list[dict[str, float]]:
    log = sorted(out.glob("*-*/losses.jsonl"))[-1]
    return [json.loads(line)["loss"] for line in log.read_text().splitlines()]


@pytest.mark.parametrize("method", CATALOG)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # forward mode is not there for every attention kernel
def test_a_student_of_every_method_runs_in_plain_diffusers(teacher, tmp_path, paths, method):
    folder = distill(teacher, job(method, tmp_path, paths), show=False)
    manifest = manifest_of(load(folder))
    assert manifest is not None
    assert (manifest.steps, manifest.sampler) == (2, CATALOG[method].samplers[0])
    plain = DiffusionPipeline.from_pretrained(folder)
    plain.set_progress_bar_config(disable=True)
    assert plain.scheduler.config.stochastic_sampling == (manifest.sampler == "renoise")
    video = CATALOG[method].video
    assert (manifest.causal == {"size": 1, "window": None, "sink": 0}) is video
    own = {name: value for name, value in manifest.call.items() if name != "negative_prompt"} if video else SIZE
    call = {**own, "num_inference_steps": 2, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    assert plain("a red ring", **call)[0].isfinite().all()
    both = zip(plain.transformer.parameters(), teacher.transformer.parameters(), strict=True)
    assert sum(not torch.equal(a, b) for a, b in both) > 10
    assert all(value == value for line in losses(tmp_path) for value in line.values())


@pytest.mark.parametrize("method", CATALOG)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_method_goes_on_as_if_it_had_not_stopped(teacher, tmp_path, paths, method):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    distill(teacher, job(method, whole, paths), show=False)
    distill(teacher, job(method, parts, paths), show=False)
    last = sorted(parts.glob("*-*/checkpoints/step-*"))[-1]
    for file in last.iterdir():  # killed before the last step was saved
        file.unlink()
    last.rmdir()
    again = distill(teacher, job(method, parts, paths), show=False)
    assert losses(parts) == losses(whole)
    ours, theirs = (next((out / "transformer").glob("*.safetensors")) for out in (again, whole / "student"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_students_of_paths_may_be_noised_anew(teacher, tmp_path, paths):
    """The same training, another sampler."""
    folders = {
        how: distill(teacher, job("kd", tmp_path / how, paths, sampler=how), show=False) for how in ("euler", "renoise")
    }
    for how, folder in folders.items():
        manifest = manifest_of(load(folder))
        assert manifest is not None
        assert manifest.sampler == how
        scheduler = DiffusionPipeline.from_pretrained(folder).scheduler
        assert scheduler.config.stochastic_sampling is (how == "renoise")
    weights = [next((folder / "transformer").glob("*.safetensors")).read_bytes() for folder in folders.values()]
    assert weights[0] == weights[1]


def test_a_ladder_goes_on_from_the_student_before(teacher, tmp_path, paths):
    ladder = [rung("kd"), replace(rung("meanflow"), steps=4), rung("dmd2")]
    distill(teacher, job("kd", tmp_path, paths, ladder=ladder), show=False)
    alone = job("dmd2", tmp_path / "alone", paths)
    distill(teacher, alone, show=False)
    assert losses(tmp_path) != losses(tmp_path / "alone")
    assert [path.name for path in sorted(tmp_path.glob("?-*"))] == ["1-kd", "2-meanflow", "3-dmd2"]


def test_what_a_judge_learnt_alone_serves_another_student(teacher, tmp_path, paths):
    def judged(out: str, **options: object) -> Job:
        one = replace(rung("apt"), options={"alone": 1.0, "matching": 0.0, **options})
        return job("apt", tmp_path / out, paths, ladder=[one])

    student = load(distill(teacher, judged("first"), show=False))
    both = zip(student.transformer.parameters(), teacher.transformer.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in both)  # it stood still
    distill(teacher, judged("second", judge=str(tmp_path / "first" / "1-apt")), show=False)
    fresh, taught = (losses(tmp_path / name)[0]["judge"] for name in ("first", "second"))
    assert taught != fresh
    distill(teacher, job("kd", tmp_path / "kd", paths), show=False)
    for place, said in (
        ("nowhere", "holds no checkpoints of a training"),
        ("kd/1-kd", "trained no judge like this one"),
    ):
        with pytest.raises(InputError, match=said):
            distill(teacher, judged("third", judge=str(tmp_path / place)), show=False)


@pytest.mark.parametrize("method", ["kd", "dmd2", "ladd", "apt"])
def test_adapters_on_one_backbone_give_a_pipeline_and_a_lora_file(tmp_path, paths, method):
    teacher = pipeline()
    shared = job(method, tmp_path, paths, roles="lora", rank=4)
    folder = distill(teacher, shared, show=False)
    call = {**SIZE, "num_inference_steps": 2, "true_cfg_scale": 1.0, "output_type": "latent"}

    def picture(pipe):
        return pipe("a red ring", **call, generator=torch.Generator().manual_seed(0)).images

    whole = DiffusionPipeline.from_pretrained(folder)
    file = distill(pipeline(), replace(shared, out=tmp_path, saved="lora", name="file"), show=False)
    adapted = pipeline()
    before = picture(adapted)
    adapted.load_lora_weights(file)
    adapted.scheduler = type(whole.scheduler).from_pretrained(file, subfolder="scheduler")
    torch.testing.assert_close(picture(adapted), picture(whole), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(picture(adapted), before, atol=1e-4)


def test_adapters_whose_activations_are_computed_again_have_the_same_losses(tmp_path):
    """In the backward pass, when no role is worn any more."""
    found = []
    for checkpointing in (False, True):
        out = tmp_path / str(checkpointing)
        own = rung("dmd2")
        own = replace(own, training={**own.training, "checkpointing": checkpointing})
        distill(pipeline(), job("dmd2", out, tmp_path / "paths", roles="lora", rank=4, ladder=[own]), show=False)
        found.append(losses(out))
    assert found[1] == [pytest.approx(line, rel=1e-5) for line in found[0]]
