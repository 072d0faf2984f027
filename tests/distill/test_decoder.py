"""A small decoder learns what the VAE decodes, and goes on where it stopped."""

from __future__ import annotations

import json

import pytest
import torch

from fewstep.distill.data.paths import PathSettings, PathTask, make_paths
from fewstep.distill.decoder import decode_pairs, decoded, distill_decoder, load_decoder
from fewstep.errors import InputError
from fewstep.models.trace import trace
from tests.distill.pipes import pipeline, video_pipeline


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    pipe = video_pipeline()
    traced = trace(pipe, prompt="a red ring", num_inference_steps=4)
    task = PathTask(
        ["a red ring", "two circles", "a blue square"],
        lambda prompts: traced.condition(prompt=list(prompts)),
        tuple(traced.noise.shape[1:]),
        (1.0, 0.5, 0.0),
        1,
    )
    settings = PathSettings(batch=3, shard=3, seed=0)
    return pipe, make_paths(traced, task, tmp_path_factory.mktemp("paths") / "p", settings, show=False)


def test_it_learns_and_is_loaded(made, tmp_path) -> None:
    pipe, paths = made
    options = {"width": 8, "steps": 60, "batch": 3, "rate": 3e-3, "warmup": 0, "ema": 0.5, "show": False}
    folder = distill_decoder(pipe, paths, tmp_path, **options)
    losses = [json.loads(line)["loss"]["decoder"] for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert len(losses) == 60
    assert losses[-1] < 0.6 * losses[0]
    small = load_decoder(folder)
    latents = paths.read([0]).states[:, -1]
    with torch.no_grad():
        frames = decode_pairs(small, latents)
        mean, std = (torch.tensor(pipe.vae.config[n]).view(1, -1, 1, 1, 1) for n in ("latents_mean", "latents_std"))
        wanted = pipe.vae.decode(latents * std + mean, return_dict=False)[0]
    assert frames.shape == (1, 3, 4, 3, 16, 16)
    made_frames = torch.cat([frames[:, 0, -1:], frames[:, 1:].flatten(1, 2)], 1).transpose(1, 2)
    assert float((made_frames - wanted).abs().mean()) < losses[0]
    clips = decoded(pipe, paths, tmp_path / "decoded", show=False)  # what is there already
    torch.testing.assert_close(clips.read([0]).cond, wanted, rtol=0, atol=2e-3)
    assert distill_decoder(pipe, paths, tmp_path, **options) == folder
    with torch.no_grad():
        pipe.vae.decoder.conv_in.weight.mul_(2)
    with pytest.raises(InputError, match="vae"):  # another VAE decodes into another folder
        decoded(pipe, paths, tmp_path / "decoded", show=False)


def test_what_has_no_video_is_refused(made, tmp_path) -> None:
    _, paths = made
    with pytest.raises(InputError, match=r"is for video pipelines as Wan's are\. Got FluxPipeline"):
        distill_decoder(pipeline(), paths, tmp_path)
    with pytest.raises(InputError, match=r"no config\.json"):
        load_decoder(tmp_path)
