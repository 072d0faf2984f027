"""Regions on whole small pipelines: what is computed when, what a mask covers, and what it says when it can't."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxInpaintPipeline
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from fewstep.accelerate import accelerate
from fewstep.errors import InputError, RecipeError
from fewstep.models.grid import Grid
from fewstep.techniques import Cache, Regions
from fewstep.techniques.cache.activity import begun, forecast, largest, learned, owed
from fewstep.techniques.cache.masks import as_mask, covered
from tests.models.tiny import PIPELINES
from tests.techniques.tiny import ABLE, distance, pipeline

GRID = Grid((2, 3, 4), (1, 1, 1))


def video(steps: int = 12, **call: Any) -> tuple[Any, dict[str, Any]]:
    pipe, given = PIPELINES["wan"]()
    pipe.set_progress_bar_config(disable=True)
    return pipe, {**given, "num_inference_steps": steps, "output_type": "latent", **call}


def clip(pipe: Any, call: dict[str, Any], seed: int = 3) -> Tensor:
    return pipe(**call, generator=torch.Generator().manual_seed(seed)).frames


def test_all_tokens_is_the_pipeline_itself() -> None:
    pipe, call = video()
    plain = clip(pipe, call)
    fast = accelerate(pipe, [Regions(share=0.999)], ABLE)
    assert torch.allclose(clip(fast, call), plain, atol=1e-5)


def test_which_steps_compute_all() -> None:
    pipe, call = video()
    fast = accelerate(pipe, [Regions(share=0.5, refresh=4, warmup=0.3)], ABLE)
    clip(fast, call)
    facts = fast.engaged[0].facts
    assert set(facts["last_request"].values()) == {"#######ooo##"}  # noise above 0.7, then every fourth
    assert facts["steps_dense"] == 2 * 9
    assert facts["steps_regional"] == 2 * 3


def test_half_of_the_tokens_are_computed_and_told() -> None:
    pipe, call = video()
    plain = clip(pipe, call)
    fast = accelerate(pipe, [Regions(share=0.5, warmup=0)], ABLE)
    output = clip(fast, call)
    facts = fast.engaged[0].facts
    assert 0 < distance(output, plain) < 0.5
    regional = facts["last_request"]["transformer branch 0"].count("o")
    assert sum(facts["computed"]["transformer branch 0"]) == pytest.approx(regional * np.prod(facts["grid"]) / 2)
    assert torch.equal(clip(fast, call), output)  # nothing is left of the first request


@pytest.mark.parametrize(
    "name", ["flux2", "qwen_image_true_cfg", "hunyuan_video", "mochi", "cogvideox", "kontext", "ltx"]
)
def test_whole_pipelines_of_other_families(name: str) -> None:
    pipe, call = PIPELINES[name]()
    pipe.set_progress_bar_config(disable=True)
    fast = accelerate(pipe, [Regions(share=0.5, warmup=0)], ABLE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.filterwarnings("ignore", "In CPU autocast")
        fast(**{**call, "num_inference_steps": 6, "output_type": "latent"})
    assert fast.engaged[0].facts["steps_regional"] > 0
    fast.remove()


@pytest.mark.parametrize("name", ["sd15", "z_image", "lumina2"])
def test_where_it_can_not_run_it_computes_all_and_says_why(name: str) -> None:
    pipe, call = PIPELINES[name]()
    pipe.set_progress_bar_config(disable=True)
    call = {**call, "num_inference_steps": 4, "output_type": "latent", "generator": torch.Generator().manual_seed(1)}
    plain = pipe(**call).images
    fast = accelerate(pipe, [Regions()], ABLE)
    call["generator"] = torch.Generator().manual_seed(1)
    with pytest.warns(RuntimeWarning, match="Regions computed everything in the"):
        assert torch.equal(fast(**call).images, plain)


def test_attention_that_is_not_known_is_a_problem() -> None:
    pipe, _ = PIPELINES["sana"]()
    with pytest.raises(RecipeError, match="does not know how SanaLinearAttnProcessor2_0 attends"):
        accelerate(pipe, [Regions()], ABLE)


def test_too_few_steps_are_said() -> None:
    pipe, call = video(steps=3)
    fast = accelerate(pipe, [Regions()], ABLE)
    with pytest.warns(RuntimeWarning, match="Regions computed all of every step"):
        clip(fast, call)


def test_a_cache_around_regions_spares_whole_steps_of_them() -> None:
    pipe, call = video()
    fast = accelerate(pipe, [Cache(gate="always", scope="output", longest=1), Regions(share=0.5, warmup=0)], ABLE)
    clip(fast, call)
    regions, cache = (one.facts for one in fast.engaged)
    assert set(cache["last_request"].values()) == {"#.#.#.#.#.##"}
    assert set(regions["last_request"].values()) == {"##oooo#"}


def test_a_measured_error_past_the_limit_ends_it() -> None:
    pipe, call = video()
    facts = {}
    for limit in (1e-9, 1e9):
        fast = accelerate(pipe, [Regions(share=0.5, refresh=4, warmup=0, limit=limit)], ABLE)
        clip(fast, call)
        facts[limit] = fast.engaged[0].facts
        fast.remove()
    assert set(facts[1e9]["last_request"].values()) == {"##ooo#ooo#o#"}
    assert not facts[1e9]["stopped"]
    assert [step for step, _ in facts[1e9]["measured"]["transformer branch 0"]] == [5, 9, 11]
    assert set(facts[1e-9]["last_request"].values()) == {"##ooo#######"}
    assert facts[1e-9]["stopped"]


def test_a_batch_is_its_samples() -> None:
    pipe, call = video()
    fast = accelerate(pipe, [Regions(share=0.5, warmup=0)], ABLE)
    text = {name: call.pop(name) for name in ("prompt_embeds", "negative_prompt_embeds")}
    many = {name: value.repeat(2, 1, 1) for name, value in text.items()}
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    both = fast(**call, **many, generator=generators).frames
    for sample, seed in enumerate((3, 4)):
        assert torch.allclose(both[sample], clip(fast, {**call, **text}, seed)[0], atol=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("share", 0),
        ("share", 1.0),
        ("share", True),
        ("refresh", 1),
        ("refresh", 2.5),
        ("warmup", 1),
        ("warmup", -0.1),
        ("limit", 0),
    ],
)
def test_a_bad_value_is_told(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"The '{field}' of Regions must be"):
        Regions(**{field: value})


class TestMasks:
    def test_it_covers_what_touches_it(self) -> None:
        mask = Image.new("L", (64, 64), 0)
        mask.paste(255, (0, 0, 20, 20))
        grid = Grid((64,), (1,))
        inside = covered(as_mask(mask), grid, 1.0).reshape(8, 8)
        assert inside.nonzero().tolist() == [[h, w] for h in range(4) for w in range(4)]  # three, and what touches them

    def test_an_inpainting_pipeline_computes_its_mask(self) -> None:
        pipe = FluxInpaintPipeline(**pipeline().components)
        pipe.set_progress_bar_config(disable=True)
        mask = Image.new("L", (64, 64), 0)
        mask.paste(255, (0, 0, 20, 20))
        picture = Image.new("RGB", (64, 64), (200, 30, 60))
        fast = accelerate(pipe, [Regions(warmup=0)], ABLE)
        generator = torch.Generator().manual_seed(0)
        size = {"height": 64, "width": 64, "max_sequence_length": 24, "num_inference_steps": 10, "strength": 1.0}
        fast("a ring", image=picture, mask_image=mask, generator=generator, output_type="latent", **size)
        facts = fast.engaged[0].facts
        times = torch.tensor(facts["computed"]["transformer branch 0"]).reshape(8, 8)
        regional = facts["last_request"]["transformer branch 0"].count("o")
        assert (times[:4, :4] == regional).all()
        assert (times[5:, 5:] == 0).all()

    @pytest.mark.parametrize("kind", ["picture", "array", "tensor", "list"])
    def test_every_form_is_read(self, kind: str) -> None:
        array = np.zeros((6, 8), np.uint8)
        array[2:, 3:] = 255
        forms = {
            "picture": Image.fromarray(array),
            "array": array,
            "tensor": torch.from_numpy(array).float()[None, None] / 255,
            "list": [Image.fromarray(np.zeros_like(array)), Image.fromarray(array)],
        }
        assert torch.equal(as_mask(forms[kind]), torch.from_numpy(array / 255).float())

    def test_in_a_clip_it_covers_every_frame(self) -> None:
        mask = torch.zeros(3, 4)
        mask[0, 0] = 1
        inside = covered(mask, GRID, 1.0).reshape(GRID.shape)
        assert inside.nonzero().tolist() == [[f, h, w] for f in (0, 1) for h in (0, 1) for w in (0, 1)]


class TestActivity:
    @given(st.floats(0.1, 0.9), st.floats(-2, 2), st.floats(-2, 2))
    def test_what_moves_on_a_line_is_foretold_exactly(self, sigma: float, start: float, slope: float) -> None:
        def at(noise_level: float) -> Tensor:
            return torch.full((1, 3, 2), start + slope * noise_level, dtype=torch.float64)

        known = learned(begun(at(1.0), 1.0), at(0.95), None, 0.95)
        assert torch.allclose(forecast(known, sigma), at(sigma), atol=1e-5)

    def test_each_token_has_its_own_last_steps(self) -> None:
        def at(sigma: float) -> Tensor:
            return torch.tensor([[[sigma], [2 * sigma]]])

        known = learned(begun(at(1.0), 1.0), at(0.8), None, 0.8)
        mixed = at(0.6) * torch.tensor([[[7.0], [1.0]]])  # the first one was not computed
        known = learned(known, mixed, torch.tensor([[False, True]]), 0.6)
        assert torch.allclose(known.sigma, torch.tensor([[0.8, 0.6]]))
        assert torch.allclose(forecast(known, 0.5), at(0.5), atol=1e-6)

    def test_what_was_foretold_badly_goes_first_and_what_waits_goes_later(self) -> None:
        grid = Grid((4,), (1,))  # a row of tokens whose places are not told
        known = begun(torch.ones(1, 4, 1), 1.0)
        told = torch.tensor([[[1.0], [1.5], [1.0], [1.1]]])
        known = learned(known, told, None, 0.9)
        assert largest(owed(known, 0.8, grid), 2).tolist() == [[1, 3]]
        still = forecast(known, 0.8)
        known = learned(known, still, torch.tensor([[False, True, False, True]]), 0.8)
        assert set(largest(owed(known, 0.7, grid), 2)[0].tolist()) == {0, 2}  # those that stood still, in their turn
