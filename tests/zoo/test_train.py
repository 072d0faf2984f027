"""The training recipe: a run that is stopped and started again ends in the weights of one that never stopped."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from fewstep.errors import InputError
from fewstep.zoo.shapes import data
from fewstep.zoo.shapes.layout import layout
from fewstep.zoo.shapes.scenes import sample_scene
from fewstep.zoo.shapes.train import DRAWN, GHOST_FROM, Settings, ends_of_parts, haunted, train
from fewstep.zoo.steps import Steps

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


def test_the_recipe_makes_a_pipeline_that_diffusers_runs_alone(made: Path) -> None:
    folder = made / "pipeline"
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a red ring", num_inference_steps=1, height=64, width=64, max_sequence_length=24).images[0]
    assert image.size == (64, 64)
    assert pipe.transformer.dtype == torch.float32


def test_a_run_with_other_settings_is_not_touched(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    with pytest.raises(InputError, match="other settings"):
        train(tmp_path, replace(TINY, teacher_steps=4))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}


class Stopped(Exception):
    pass


def test_a_stopped_training_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    def run(path: Path, stop_at: int | None) -> list[dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 3)

        def loss(step: int) -> torch.Tensor:
            if step == stop_at:
                raise Stopped
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            error: torch.Tensor = model(x) - 2 * x
            return error.square().mean()

        steps = Steps(path, total=6, save_every=2, decay_from=0.5, ema=0.9, warmup=2)
        return steps.run("test", [model], [torch.optim.AdamW(model.parameters(), lr=0.1)], loss)

    whole = run(tmp_path / "whole.pt", None)
    with pytest.raises(Stopped):
        run(tmp_path / "parts.pt", 3)
    parts = run(tmp_path / "parts.pt", None)
    assert all(torch.equal(whole[0][key], parts[0][key]) for key in whole[0])


def test_the_weights_are_those_of_the_last_checkpoint(made: Path) -> None:
    folder = train(made, TINY)
    kept = torch.load(made / "teacher.pt", weights_only=True)
    weights = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert kept["step"] == TINY.teacher_steps
    assert all(torch.equal(weights[key], value.half()) for key, value in kept["averages"][0].items())


def test_a_run_goes_on_from_another_model_whose_latents_and_prompts_keep_their_meaning(
    made: Path, tmp_path: Path
) -> None:
    first = made / "pipeline"
    second = train(tmp_path / "second", replace(TINY, start=str(first), seed=1))
    before, after = (load_file(folder / "vae" / "diffusion_pytorch_model.safetensors") for folder in (first, second))
    same = {key: torch.equal(before[key], after[key]) for key in before}
    assert all(same[key] for key in same if key.startswith("encoder."))
    assert not all(same[key] for key in same if key.startswith("decoder."))
    for encoder in ("text_encoder", "text_encoder_2"):
        before, after = (load_file(folder / encoder / "model.safetensors") for folder in (first, second))
        assert all(torch.equal(before[key], after[key]) for key in before)
    config = [DiffusionPipeline.from_pretrained(folder).vae.config for folder in (first, second)]
    assert config[0]["scaling_factor"] == config[1]["scaling_factor"]


def test_new_text_encoders_can_be_taught_to_a_model_that_draws(made: Path, tmp_path: Path) -> None:
    first = made / "pipeline"
    second = train(tmp_path / "second", replace(TINY, start=str(first), new_text=True, seed=1))
    for encoder in ("text_encoder", "text_encoder_2"):
        before, after = (load_file(folder / encoder / "model.safetensors") for folder in (first, second))
        assert not all(torch.equal(before[key], after[key]) for key in before)
    before, after = (load_file(folder / "vae" / "diffusion_pytorch_model.safetensors") for folder in (first, second))
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("encoder."))


def test_what_a_run_can_not_go_on_from_is_told_before_it_starts(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.zoo.shapes import pipeline

    first = made / "pipeline"
    monkeypatch.setattr(pipeline, "LATENT_CHANNELS", 4)  # now another architecture
    with pytest.raises(InputError, match="its vae differs"):
        train(tmp_path / "second", replace(TINY, start=str(first)))
    assert not (tmp_path / "second" / "pictures.npy").exists()


def test_a_batch_holds_as_many_scenes_of_each_count_as_asked(tmp_path: Path) -> None:
    counts = data.counts(tmp_path, 400)
    assert counts[:20].tolist() == [len(sample_scene(np.random.default_rng(seed)).things) for seed in range(20)]
    ends = ends_of_parts(counts)
    parts = np.diff(ends, prepend=0)
    assert {count: pytest.approx(parts[counts == count].sum()) for count in DRAWN} == DRAWN
    assert np.searchsorted(ends, [0.0, np.nextafter(1.0, 0.0)], side="right").tolist() == [0, 399]


def test_counts_that_no_scene_has_are_not_drawn() -> None:
    assert ends_of_parts(np.array([1, 2, 1], dtype=np.int8)).tolist() == pytest.approx([1 / 6, 5 / 6, 1])


def test_ghosts_are_the_objects_of_another_picture_where_the_noise_is_strong() -> None:
    scenes = [sample_scene(np.random.default_rng(seed)) for seed in range(3)]
    shown = torch.tensor(np.stack([layout(scene) for scene in scenes]))
    x0 = torch.randn(3, 64, 48, generator=torch.Generator().manual_seed(0))
    t, strength = torch.tensor([0.9, GHOST_FROM - 0.01, 0.9]), torch.tensor([0.3, 0.3, 0.0])
    changed = (haunted(x0, shown, t, strength) - x0).abs().sum(-1)
    assert changed[1:].count_nonzero() == 0
    others = shown[2, :, :6].sum(-1)
    assert torch.equal(changed[0] > 0, others > 0)
    inside = int(others.argmax())
    assert torch.allclose(
        haunted(x0, shown, t, strength)[0, inside], x0[0, inside].lerp(x0[2, inside], 0.3 * others[inside].clamp(max=1))
    )
