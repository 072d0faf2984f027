"""Real data as latents: they decode to their pictures, go on where they stopped, and what is bad is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.distill.data.captions import Table
from fewstep.distill.data.encode import EncodeSettings, encode
from fewstep.distill.data.samples import INDEX
from fewstep.distill.data.store import verify
from fewstep.distill.engine.loop import Settings, train
from fewstep.distill.engine.roles import student_of
from fewstep.distill.methods.finetune import Finetune
from fewstep.errors import InputError
from fewstep.models.load import load
from fewstep.models.trace import trace
from fewstep.models.tracing.leaves import same
from fewstep.zoo.shapes.render import render
from fewstep.zoo.shapes.scenes import describe, sample_scene
from tests.distill.pipes import pipeline

CAPTIONS = ["a red ring", "a small blue cross on a dark background", "two circles", "a green square", "a ring"]
SETTINGS = EncodeSettings(batch=2, shard=2)


@pytest.fixture(scope="module")
def traced():
    pipe = pipeline()
    return pipe, trace(pipe, prompt="a ring", num_inference_steps=3)


@pytest.fixture
def pictures(tmp_path):
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for i, caption in enumerate(CAPTIONS):
        Image.fromarray(rng.integers(0, 256, (20, 16 + i, 3), np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption)
    return folder


def encoded(traced, source, folder, settings=SETTINGS):
    return encode(*traced, source, folder, settings, show=False)


def test_pictures_come_back_through_the_pipelines_own_decoding(tmp_path):
    scenes = [sample_scene(np.random.default_rng(seed)) for seed in range(3)]
    drawn = [render(scene) for scene in scenes]
    for i, (scene, picture) in enumerate(zip(scenes, drawn, strict=True)):
        Image.fromarray(np.round(picture.clip(0, 1) * 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(describe(scene, np.random.default_rng(0))[0])
    pipe = load("zoo:shapes")
    pipe.set_progress_bar_config(disable=True)
    traced = trace(pipe, prompt="a red ring", num_inference_steps=3)
    batch = encode(pipe, traced, tmp_path, tmp_path / "out", show=False).read(range(3))
    assert batch.times == (0.0,)
    prompts = [(tmp_path / f"{i}.txt").read_text() for i in range(3)]
    assert same(batch.cond.branches, traced.condition(prompt=prompts, negative_prompt=[""] * 3).branches)
    put = {"callback_on_step_end": lambda *_: {"latents": batch.states[:, 0]}, "num_inference_steps": 1}
    shown = pipe(prompts, **put, output_type="np").images
    psnr = -10 * np.log10(((shown - np.stack(drawn).clip(0, 1)) ** 2).mean(axis=(1, 2, 3)))
    assert psnr.min() > 25


def test_a_method_that_learns_from_data_trains_on_them(traced, pictures, tmp_path):
    latents = encoded(traced, pictures, tmp_path / "out")
    student = student_of(traced[1])
    before = {name: value.clone() for name, value in student.module.state_dict().items()}
    settings = Settings(steps=2, warmup=0)
    train(Finetune(student), latents.batches(3), tmp_path / "run", settings, show=False)
    moved = [not torch.equal(value, before[name]) for name, value in student.module.state_dict().items()]
    assert sum(moved) > len(moved) / 2


def test_it_goes_on_makes_damaged_shards_again_and_depends_on_no_batch(traced, pictures, tmp_path):
    settings = replace(SETTINGS, posterior="sample")
    first = encoded(traced, pictures, tmp_path / "out", settings).read(range(5))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*")}
    assert len(times) == 3
    damaged = tmp_path / "out" / "shard-00001.safetensors"
    damaged.write_bytes(b"no shard")
    assert len(verify(tmp_path / "out", show=False)) == 1
    again = encoded(traced, pictures, tmp_path / "out", settings).read(range(5))
    assert torch.equal(again.states, first.states)
    now = {path: path.stat().st_mtime_ns for path in times}
    assert {path for path in times if now[path] != times[path]} == {damaged}
    whole = encoded(traced, pictures, tmp_path / "whole", replace(settings, batch=5, shard=5)).read(range(5))
    torch.testing.assert_close(whole.states, first.states)
    mean = encoded(traced, pictures, tmp_path / "mean").read(range(5))
    assert not torch.allclose(mean.states, first.states, atol=1e-3)


def test_other_data_or_settings_are_refused(traced, pictures, tmp_path):
    encoded(traced, pictures, tmp_path / "out")
    with pytest.raises(InputError, match="made with posterior = 'mean', and these have 'sample'"):
        encoded(traced, pictures, tmp_path / "out", replace(SETTINGS, posterior="sample"))
    (pictures / "0.txt").write_text("another")
    with pytest.raises(InputError, match="holds latents of data made with captions_sha256 = "):
        encoded(traced, pictures, tmp_path / "out")


def test_a_damaged_picture_is_named_before_any_work(traced, pictures, tmp_path):
    data = (pictures / "4.png").read_bytes()
    (pictures / "4.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"^.*pictures/4\.png can't be read as a picture: "):
        encoded(traced, pictures, tmp_path / "out")
    assert not (tmp_path / "out" / INDEX).exists()


def test_a_table_and_another_size(traced, tmp_path):
    rows = [{"picture": Image.new("RGB", (30, 30), (50 * i, 0, 0)), "said": text} for i, text in enumerate(CAPTIONS)]
    table = Table(iter(rows), "mine", image="picture", caption="said", samples=4)
    latents = encoded(traced, Table(rows, "mine", image="picture", caption="said"), tmp_path / "out")
    assert latents.read([0]).states.shape == (1, 1, 4, 48)
    streamed = encoded(traced, table, tmp_path / "streamed", replace(SETTINGS, height=32))
    batch = streamed.read([1, 3])
    assert batch.states.shape == (2, 1, 8, 48)
    x_t = torch.randn(2, 8, 48, generator=torch.Generator().manual_seed(0))
    assert traced[1](x_t, 0.5, batch.cond).shape == x_t.shape  # the condition is that of this size too


def test_bad_settings_are_one_sentence(traced, pictures, tmp_path):
    for field, value in {"posterior": "mode", "height": 0, "stride": 0, "batch": 0, "stored": "int8"}.items():
        with pytest.raises(InputError, match=f"^The '{field}' of"):
            replace(SETTINGS, **{field: value})
    with pytest.raises(InputError, match="The call of FluxPipeline takes no 'num_frames'"):
        encoded(traced, pictures, tmp_path / "out", replace(SETTINGS, frames=5))
