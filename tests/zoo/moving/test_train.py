"""The recipe of `moving-shapes`: what it makes, and that what is trained is what the pipeline then runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from fewstep.errors import InputError
from fewstep.models.load import load
from fewstep.zoo.evaluate import generate
from fewstep.zoo.moving import data
from fewstep.zoo.moving.pipeline import CALL, LATENT_SHAPE
from fewstep.zoo.moving.train import Settings, _velocity_and_middle, train

TINY = Settings(
    scenes=12,
    vae_steps=2,
    vae_batch=2,
    text_steps=2,
    text_batch=2,
    teacher_steps=3,
    teacher_batch=2,
    save_every=1,
    compile=False,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, not to be changed."""
    run = tmp_path_factory.mktemp("made") / "run"
    train(run, TINY)
    return run


def test_the_recipe_makes_a_small_pipeline_that_diffusers_runs_alone(made: Path) -> None:
    folder = made / "pipeline"
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 16e6
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.transformer.dtype == pipe.vae.dtype == torch.float32
    clips = pipe("a red ring moving left", **{**CALL, "num_inference_steps": 1}).frames
    assert clips.shape == (1, 17, 64, 64, 3)
    assert np.isfinite(clips).all()


def test_latents_have_the_scale_that_the_pipeline_undoes(made: Path) -> None:
    latents = np.load(made / "latents.npy").astype(np.float32)
    assert latents.shape == (TINY.scenes, *LATENT_SHAPE)
    np.testing.assert_allclose(latents.mean((0, 2, 3, 4)), 0, atol=0.02)
    np.testing.assert_allclose(latents.std((0, 2, 3, 4)), 1, atol=0.02)
    vae = DiffusionPipeline.from_pretrained(made / "pipeline").vae
    clips = data.clips([3], "cpu")
    with torch.no_grad():
        mean = vae.encode(clips).latent_dist.mean[0].numpy()
    centre, spread = (np.array(vae.config[name])[:, None, None, None] for name in ("latents_mean", "latents_std"))
    np.testing.assert_allclose(latents[3], (mean - centre) / spread, atol=0.1)


def test_the_pipeline_asks_its_transformer_as_it_was_trained(made: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(made / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    asked: list[dict[str, torch.Tensor]] = []
    pipe.transformer.register_forward_pre_hook(lambda module, given, named: asked.append(named), with_kwargs=True)
    pipe("a red ring moves", **{**CALL, "num_inference_steps": 3, "guidance_scale": 1.0}, output_type="latent")
    given = asked[1]
    sigma = float(pipe.scheduler.sigmas[1])
    assert 0.5 < sigma < 1
    ids = torch.from_numpy(np.load(made / "tokens.npy")[:1, 0]).long() * 0
    words = pipe.tokenizer("a red ring moves").input_ids
    ids[0, : len(words)] = torch.tensor(words)
    with torch.no_grad():
        _velocity_and_middle(pipe, given["hidden_states"], ids, torch.tensor([sigma]))
    ours = asked[-1]
    torch.testing.assert_close(ours["timestep"], given["timestep"], check_dtype=False)
    torch.testing.assert_close(ours["encoder_hidden_states"], given["encoder_hidden_states"], atol=1e-6, rtol=1e-5)


def test_clips_are_generated_by_the_manifests_call(made: Path) -> None:
    pipe = load(str(made / "pipeline"))
    texts = ["a red ring moving left", "a blue box goes up"]
    both = generate(pipe, texts, range(2), show=False, num_inference_steps=1)
    assert both.shape == (2, 17, 64, 64, 3)
    one = generate(pipe, texts[1:], [1], show=False, num_inference_steps=1)
    np.testing.assert_allclose(one[0], both[1], atol=1e-4)


def test_a_run_goes_on_from_its_checkpoint(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "pipeline")
    shutil.rmtree(tmp_path / "vae")
    folder = train(tmp_path, TINY)
    for part in ("transformer", "vae"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        before, after = load_file(made / "pipeline" / name), load_file(folder / name)
        assert all(torch.equal(before[key], after[key]) for key in before)
    with pytest.raises(InputError, match="other settings"):
        train(tmp_path, replace(TINY, teacher_steps=4))


def test_a_run_goes_on_from_another_model_whose_latents_and_prompts_keep_their_meaning(
    made: Path, tmp_path: Path
) -> None:
    first = made / "pipeline"
    second = train(tmp_path / "second", replace(TINY, start=str(first), seed=1))
    before, after = (load_file(folder / "vae" / "diffusion_pytorch_model.safetensors") for folder in (first, second))
    same = {key: torch.equal(before[key], after[key]) for key in before}
    assert all(same[key] for key in same if key.startswith(("encoder.", "quant_conv.")))
    assert not all(same[key] for key in same if key.startswith("decoder."))
    before, after = (load_file(folder / "text_encoder" / "model.safetensors") for folder in (first, second))
    assert all(torch.equal(before[key], after[key]) for key in before)
    config = [DiffusionPipeline.from_pretrained(folder).vae.config for folder in (first, second)]
    assert config[0]["latents_std"] == config[1]["latents_std"]
