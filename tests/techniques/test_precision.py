"""Casting parts of a pipeline, and what comes in at their doors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewstep.accelerate import accelerate
from fewstep.errors import InputError
from fewstep.models.model import Model
from fewstep.techniques import Precision
from fewstep.techniques.precision import cast, float32_names, main_dtype, stays_float32
from fewstep.zoo.moving.pipeline import build_pipeline
from tests.techniques.tiny import ABLE, BARE, CALL, PROMPT, distance, pipeline, run, state


def test_cast_takes_floats_wherever_they_are_and_nothing_else() -> None:
    given = {"a": [torch.ones(2), torch.ones(2, dtype=torch.int64)], "b": None, "c": (torch.ones(1).bfloat16(), "x")}
    got = cast(given, torch.float16)
    assert [t.dtype for t in got["a"]] == [torch.float16, torch.int64]
    assert got["c"][0].dtype == torch.float16
    assert got["b"] is None
    assert got["c"][1] == "x"
    assert given["a"][0].dtype == torch.float32  # the caller's own dict is not written to


def test_stays_float32_goes_by_whole_names() -> None:
    assert stays_float32("blocks.0.norm1.weight", ["norm1"])
    assert not stays_float32("blocks.0.norm10.weight", ["norm1"])


def test_the_models_own_wishes_are_heard() -> None:
    text_encoder = pipeline().text_encoder_2  # T5: its 'wo' overflows in float16
    assert float32_names(text_encoder, torch.float16) == {"wo"}
    assert float32_names(text_encoder, torch.bfloat16) == set()


def test_main_dtype_is_that_of_most_weights() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(64, 64).bfloat16())
    assert main_dtype(module) == torch.bfloat16
    assert main_dtype(nn.ReLU()) is None


def test_what_needs_no_cast_stays_the_very_object() -> None:
    """Wan's VAE writes its frames' state into a list that it is given."""
    state = [None, "Rep", torch.ones(2, dtype=torch.float16)]
    inside = {"feat_cache": state, "at": [0]}
    assert cast(inside, torch.float16) is inside
    assert cast(state, torch.float16) is state
    assert cast(state, torch.float32) is not state


def test_a_video_autoencoder_keeps_its_state() -> None:
    pipe = build_pipeline()
    pipe.set_progress_bar_config(disable=True)
    call = {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 24, "num_inference_steps": 1}
    fast = accelerate(pipe, Precision(), ABLE)
    assert fast("a red ring moving left", **call).frames.shape == (1, 9, 32, 32, 3)


def test_all_parts_are_cast_and_half_the_bytes_are_left() -> None:
    pipe = pipeline()
    fast = accelerate(pipe, Precision(), ABLE)
    facts = fast.engaged[0].facts
    assert facts["components"] == ["transformer", "text_encoder", "text_encoder_2", "vae"]
    assert facts["bytes_after"] < 0.52 * facts["bytes_before"]
    assert {p.dtype for p in pipe.transformer.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "components", [(), ("transformer",), ("vae",), ("text_encoder",), ("text_encoder_2", "transformer")]
)
def test_any_choice_of_parts_runs_to_the_pixels_and_back(components: tuple[str, ...]) -> None:
    pipe = pipeline()
    before, plain = state(pipe), run(pipe, output_type="pt")
    fast = accelerate(pipe, Precision(components=components), ABLE)
    assert distance(run(fast, output_type="pt"), plain) < 0.05
    fast.remove()
    assert state(pipe) == before
    assert torch.equal(run(pipe, output_type="pt"), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_may_come_in_any_dtype(dtype: torch.dtype) -> None:
    pipe = pipeline()
    with torch.no_grad():
        embeds, pooled, _ = pipe.encode_prompt(PROMPT, None, max_sequence_length=24)
    fast = accelerate(pipe, Precision(), ABLE)
    call = {"prompt_embeds": embeds.to(dtype), "pooled_prompt_embeds": pooled.to(dtype)}
    image = fast(**call, **{**CALL, "output_type": "pt"}, num_inference_steps=2).images
    assert image.isfinite().all()


def test_latents_keep_the_precision_of_the_embeddings() -> None:
    fast = accelerate(pipeline(), Precision(components=("transformer", "vae")), ABLE)
    assert run(fast).dtype == torch.float32


def test_problems() -> None:
    model = Model(pipeline())
    assert Precision().problems(model, ABLE) == []
    assert Precision().problems(model, BARE) == [BARE.missing("bf16")]
    assert "bfloat16" in Precision(dtype="float16").problems(model, ABLE)[0]
    (unknown,) = Precision(components=("transformr",)).problems(model, ABLE)
    assert "'transformr'" in unknown
    model.pipe.vae.to(torch.bfloat16)
    (nothing,) = Precision(components=("vae",)).problems(model, ABLE)
    assert "nothing to cast" in nothing


def test_a_vae_that_overflows_stays() -> None:
    pipe = pipeline()
    pipe.vae.register_to_config(force_upcast=True)
    parts = {part.name: part.skipped for part in Precision(dtype="float16").parts(Model(pipe))}
    assert "force_upcast" in (parts["vae"] or "")
    assert parts["transformer"] is None


@pytest.mark.parametrize("fields", [{"dtype": "float3"}, {"components": "vae"}])
def test_bad_fields(fields: dict[str, object]) -> None:
    with pytest.raises(InputError, match="of Precision must be"):
        Precision(**fields)  # type: ignore[arg-type]
