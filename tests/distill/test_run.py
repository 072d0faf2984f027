"""The whole way on a small real pipeline: trace, paths, training, export; resumed, shared, in progressive stages."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml
from diffusers import DDIMScheduler, DiffusionPipeline, EulerDiscreteScheduler
from PIL import Image

from fewstep.diffusion.samplers import euler, flow_times
from fewstep.distill.data.captions import Table
from fewstep.distill.data.samples import PathSet
from fewstep.distill.job import Job, Rung
from fewstep.distill.ladder import Domain, Ladder
from fewstep.distill.mixtures import MixtureTask, ring
from fewstep.distill.pipelines import PipelineJob, unguided
from fewstep.distill.run import distill, run
from fewstep.errors import InputError
from fewstep.models.load import load
from fewstep.models.manifest import Manifest, manifest_of
from fewstep.models.trace import trace
from tests.distill.pipes import CALL, SHIFT, SIZE, pipeline, stable_diffusion

PROMPTS = ["a red ring", "a small blue cross on a dark background", "two circles"]
FLAT = {"samples": 6, "teacher_steps": 4, "iterations": 4, "batch": 3, "rate": 1e-3, "warmup": 0}
TRAINING = {"rate": 1e-3, "warmup": 0}
SMALL = {"samples": 6, "teacher_steps": 4, "ladder": [Rung("kd", 4, 3, training=TRAINING)]}


@pytest.fixture(scope="module")
def teacher():
    return pipeline()


def test_kd_makes_a_plain_pipeline(teacher, tmp_path):
    job = Job(PROMPTS, tmp_path, steps=2, call={"true_cfg_scale": 2.0}, **SMALL)
    folder = distill(teacher, job, show=False)
    manifest = manifest_of(load(folder))
    assert manifest is not None
    told = {name: manifest.made_by[name] for name in ("steps", "call", "start", "data", "shift")}
    assert told == {"steps": 2, "call": {"true_cfg_scale": 2.0}, "start": None, "data": None, "shift": None}
    assert (manifest.name, manifest.steps, manifest.guidance_inside) == ("tiny-2step", 2, True)
    assert manifest.times == pytest.approx(flow_times(2, SHIFT))
    assert manifest.call == {**SIZE, "num_inference_steps": 2, "true_cfg_scale": 1.0}
    assert manifest.made_by["versions"]["torch"] == torch.__version__
    plain = DiffusionPipeline.from_pretrained(folder)
    plain.set_progress_bar_config(disable=True)
    assert plain("a red ring", num_inference_steps=2, **SIZE, output_type="latent").images.isfinite().all()
    both = zip(plain.transformer.parameters(), teacher.transformer.parameters(), strict=True)
    moved = [not torch.equal(a, b) for a, b in both]
    assert sum(moved) > len(moved) / 2


def test_stored_paths_are_those_of_the_guided_pipeline(teacher, tmp_path):
    distill(teacher, Job(PROMPTS, tmp_path, steps=2, **{**SMALL, "teacher_steps": 8}), show=False)
    traced = trace(teacher, prompt=PROMPTS[0])
    batch = PathSet(tmp_path / "paths", traced.condition(prompt=PROMPTS[:2], negative_prompt=["", ""])).read([0, 1, 5])
    for i, row in enumerate((0, 1, 5)):
        call = {**CALL, "num_inference_steps": 60, "output_type": "latent", "prompt": PROMPTS[row % 3]}
        exact = teacher(**call, latents=batch.states[i : i + 1, 0]).images
        assert (batch.states[i, -1] - exact[0]).norm() / exact.norm() < 0.05
        other = {**call, "prompt": PROMPTS[(row + 1) % 3]}
        assert not torch.allclose(exact, teacher(**other, latents=batch.states[i : i + 1, 0]).images, atol=1e-4)
    # And the student sees the prompt through the stored condition as through its own.
    student = traced.with_module(traced.module, guided=False)
    x = batch.states[:1, 0]
    own = traced.condition(prompt=PROMPTS[0])
    ours = euler(student, x, flow_times(2, SHIFT), batch.cond.slice([0]))
    torch.testing.assert_close(ours, euler(student, x, flow_times(2, SHIFT), own), rtol=0, atol=1e-5)


def test_the_same_call_again_does_nothing_again(teacher, tmp_path):
    job = Job(PROMPTS, tmp_path, steps=2, **SMALL)
    first = distill(teacher, job, show=False)
    weights = next((first / "transformer").glob("*.safetensors")).read_bytes()
    log = (tmp_path / "1-kd" / "losses.jsonl").read_text()
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "paths").glob("shard-*")}
    again = distill(teacher, job, show=False)
    assert next((again / "transformer").glob("*.safetensors")).read_bytes() == weights
    assert (tmp_path / "1-kd" / "losses.jsonl").read_text() == log
    assert shards == {path: path.stat().st_mtime_ns for path in (tmp_path / "paths").glob("shard-*")}


def test_students_of_fewer_steps_share_paths_and_start_from_another(teacher, tmp_path):
    four = Job(PROMPTS, tmp_path / "four", steps=4, paths=tmp_path / "paths", **SMALL)
    start = distill(teacher, four, show=False)
    one = Job(PROMPTS, tmp_path / "one", steps=1, kept_steps=4, paths=tmp_path / "paths", start=start, **SMALL)
    manifest = manifest_of(load(distill(teacher, one, show=False)))
    assert manifest is not None
    assert manifest.times == (1.0, 0.0)


def test_trainings_in_other_precisions_share_paths_that_say_theirs(teacher, tmp_path):
    common = {**SMALL, "steps": 2, "paths": tmp_path / "paths", "teacher_precision": "bf16"}
    quick = [Rung("kd", 4, 3, training={**TRAINING, "precision": "bf16"})]
    distill(teacher, Job(PROMPTS, tmp_path / "quick", **{**common, "ladder": quick}), show=False)
    assert PathSet(tmp_path / "paths").index.made_with["precision"] == "bf16"
    distill(teacher, Job(PROMPTS, tmp_path / "exact", **common), show=False)
    with pytest.raises(InputError, match="precision"):
        distill(teacher, Job(PROMPTS, tmp_path / "none", **{**common, "teacher_precision": None}), show=False)


def test_progressive_goes_through_its_stages(teacher, tmp_path):
    ladder = [Rung("progressive", 4, 3, halve_from=4, training=TRAINING)]
    job = Job(PROMPTS, tmp_path, steps=1, **{**SMALL, "ladder": ladder})
    folder = distill(teacher, job, show=False)
    assert load(folder)("a red ring", output_type="latent").images.isfinite().all()
    for stage in (1, 2):
        lines = [
            json.loads(line) for line in (tmp_path / f"{stage}-progressive" / "losses.jsonl").read_text().splitlines()
        ]
        assert lines[-1]["rate"] < lines[0]["rate"]


def test_a_configuration_file_runs_it_and_shares_the_teachers_parts(teacher, tmp_path):
    teacher.save_pretrained(tmp_path / "teacher")
    Manifest("tiny", call=CALL).write(tmp_path / "teacher")
    config = {**FLAT, "teacher": str(tmp_path / "teacher"), "prompts": "task:x", "out": str(tmp_path / "run")}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**config, "steps": 2, "share": True, "stored": "float16"}))
    folder = run(tmp_path / "job.yaml", tasks=lambda name: PROMPTS)
    assert not (folder / "vae").exists()
    assert load(folder)("a red ring", output_type="latent").images.isfinite().all()
    with pytest.raises(InputError, match="needs a 'teacher'"):
        run({"prompts": PROMPTS, "out": str(tmp_path)})
    with pytest.raises(InputError, match="There is no folder"):
        run({"prompts": PROMPTS, "out": str(tmp_path), "teacher": "./none"})


def test_another_guidance_of_the_teacher_ends_up_inside_the_student(teacher, tmp_path):
    job = Job(PROMPTS, tmp_path, steps=2, call={"true_cfg_scale": 1.5}, **SMALL)
    manifest = manifest_of(load(distill(teacher, job, show=False)))
    assert manifest is not None
    assert manifest.call["true_cfg_scale"] == 1.0


@pytest.mark.parametrize(("kind", "start"), [(DDIMScheduler, 999.0), (EulerDiscreteScheduler, 14.61)])
@pytest.mark.parametrize("method", ["kd", "dmd2"])
def test_a_noise_predicting_unet_is_distilled_on_its_own_schedule(tmp_path, kind, start, method):
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    teacher = stable_diffusion(kind(**betas, steps_offset=1))
    options = {"critic_steps": 1} if method == "dmd2" else {}
    rungs = [Rung(method, 3, 3, training=TRAINING, options=options)]
    job = Job(PROMPTS, tmp_path, steps=2, **{**SMALL, "ladder": rungs}, check_every=3, shown=2, draws=2)
    folder = distill(teacher, job, show=False)
    manifest = manifest_of(load(folder))
    assert manifest is not None
    assert manifest.times[0] == pytest.approx(start, abs=0.01)
    assert manifest.call["guidance_scale"] == 1.0
    plain = DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    plain.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "guidance_scale": 1.0, "height": 32, "width": 32, "output_type": "latent"}
    assert plain("a red ring", **call).images.isfinite().all()
    with pytest.raises(InputError, match="sampled by 'renoise' in several steps can be written for flow"):
        distill(teacher, replace(job, sampler="renoise", ladder=[Rung("dmd2")]), show=False)


def test_a_student_on_training_timesteps_divides_them(tmp_path):
    job = Job(PROMPTS, tmp_path, steps=3, **SMALL)
    with pytest.raises(InputError, match="'steps' of the student must be a divisor of the 1000"):
        distill(stable_diffusion(DDIMScheduler()), job, show=False)


def test_pictures_with_captions_are_trained_on_and_nothing_else(teacher, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, caption in enumerate(["a red ring", "two circles", "a blue square"]):
        Image.new("RGB", (20, 16), (200, 40 * i, 0)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(caption)
    rungs = [Rung("consistency", 2, 2, training=TRAINING, options={"taught": False})]
    job = Job((), tmp_path / "run", data=pictures, steps=1, **{**SMALL, "ladder": rungs}, check_every=0, show_every=0)
    folder = distill(teacher, job, show=False)
    assert load(folder)("a red ring", output_type="latent").images.isfinite().all()
    assert len(PathSet(tmp_path / "run" / "latents")) == 3
    assert not (tmp_path / "run" / "paths").exists()
    encoded = tmp_path / "run" / "latents"
    before = {file: file.stat().st_mtime_ns for file in encoded.glob("shard-*")}
    distill(teacher, replace(job, out=tmp_path / "other", latents=encoded), show=False)
    assert {file: file.stat().st_mtime_ns for file in encoded.glob("shard-*")} == before
    assert not (tmp_path / "other" / "latents").exists()
    with pytest.raises(InputError, match="'prompts' of the source of prompts must be at least one prompt"):
        distill(teacher, replace(job, data=None), show=False)


def test_no_more_captions_are_read_than_are_shown(teacher, tmp_path):
    """Each row may be a download of its picture."""
    read = set()

    class Counted(Table):
        def read(self, samples):
            read.update(samples)
            return super().read(samples)

    rows = [{"image": Image.new("RGB", (16, 16)), "text": f"{i} rings"} for i in range(60)]
    job = Job((), tmp_path, data=Counted(rows, "rows"), steps=1, ladder=[Rung("dmd2")], shown=4)
    given = PipelineJob.of(teacher, job)
    assert list(given.ladder.domain.unseen) == [f"{i} rings" for i in range(4)]
    assert read == set(range(4))


def test_guidance_is_turned_off_where_the_pipeline_has_it():
    call = {"height": 8, "negative_prompt": "", "negative_prompt_2": "x", "guidance_scale": 4.0}
    assert unguided(call, {"guidance_scale"}) == {"height": 8, "guidance_scale": 1.0}
    assert unguided(call, {"guidance_scale", "true_cfg_scale"}) == {
        "height": 8,
        "guidance_scale": 4.0,
        "true_cfg_scale": 1.0,
    }


@pytest.mark.parametrize("method", ["dmd2_gan", "f_distill", "ladd"])
def test_a_discriminator_on_a_network_without_blocks_is_told_which_features(method, tmp_path):
    exact = MixtureTask(ring(4), labelled=False)
    domain = Domain(exact.student(0, width=16), [0] * 64, lambda _: None, (2,))

    def climbed(name, **options):
        rung = Rung(method, 2, 8, options=options, training=TRAINING)
        job = Job((), tmp_path / name, steps=1, ladder=[rung], samples=64, teacher_steps=2)
        return Ladder(domain, job).climb(show=False)

    with pytest.raises(InputError, match=r"MLP has no repeated blocks.*name modules of it as 'features'"):
        climbed("unnamed")
    with pytest.raises(InputError, match=r"has no part 'layers\.9'"):
        climbed("misnamed", features=["layers.9"])
    assert all(weight.isfinite().all() for weight in climbed("named", features=["layers.0", "layers.2"]).parameters())
