"""Regions, graphs, and eager brought back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fewstep.accelerate import accelerate
from fewstep.errors import InputError, RecipeError
from fewstep.models.hooks import wrapped
from fewstep.models.model import Model
from fewstep.techniques import Cache, Compile, Regions
from fewstep.techniques.compile import regions
from tests.techniques.tiny import ABLE, BARE, distance, no_codegen, pipeline, run, state


def test_one_region_a_class_of_blocks() -> None:
    found = regions(Model(pipeline()), ("transformer", "vae", "text_encoder_2"))
    assert [(region.label, len(region.modules)) for region in found] == [
        ("transformer: FluxTransformerBlock", 1),
        ("transformer: FluxSingleTransformerBlock", 2),
        ("vae: Decoder", 1),
        ("text_encoder_2: T5EncoderModel", 1),
    ]


def test_a_wrapped_block_is_a_region_of_its_own() -> None:
    pipe = pipeline()
    with wrapped(pipe.transformer.single_transformer_blocks[1], lambda forward, *a, **k: forward(*a, **k)):
        found = regions(Model(pipe), ("transformer",))
    assert [len(region.modules) for region in found] == [1, 1, 1]


@pytest.mark.slow
def test_with_generated_code_the_picture_stays_and_eager_comes_back_exactly() -> None:
    pipe = pipeline(num_single_layers=1)
    before, plain = state(pipe), run(pipe, steps=2)
    fast = accelerate(pipe, Compile(), ABLE)
    assert distance(run(fast, steps=2), plain) < 1e-4
    assert fast.engaged[0].facts["graphs"] >= 2
    fast.remove()
    assert state(pipe) == before
    assert torch.equal(run(pipe, steps=2), plain)


def test_each_block_class_is_captured_whole() -> None:
    """As many graphs as classes and shapes: a graph break would add some."""
    pipe = pipeline(num_single_layers=1)
    with no_codegen():
        fast = accelerate(pipe, Compile(), ABLE)
        run(fast, steps=2)
        assert fast.engaged[0].facts == {
            "regions": 2,
            "modules": 2,
            "graphs": 2,
            "rewritten": 7,
        }  # three GELUs, and two rotations a block
        run(fast, steps=2)
        assert fast.engaged[0].facts["graphs"] == 2  # nothing is compiled twice


def test_a_whole_denoiser_is_one_graph_and_comes_back() -> None:
    pipe = pipeline(num_single_layers=2)
    before, plain = state(pipe), run(pipe, steps=2)
    with no_codegen():
        fast = accelerate(pipe, [Compile(whole=True)], ABLE)
        assert distance(run(fast, steps=2), plain) < 1e-4
        assert fast.engaged[0].facts == {"regions": 1, "modules": 1, "graphs": 1, "rewritten": 10}
    fast.remove()
    assert state(pipe) == before
    assert torch.equal(run(pipe, steps=2), plain)


def test_a_whole_denoiser_is_refused_where_a_cache_decides_between_its_blocks() -> None:
    pipe = pipeline(num_single_layers=1)
    before = state(pipe)
    with pytest.raises(RecipeError, match=r"both change denoiser\.forward"):
        accelerate(pipe, [Compile(whole=True), Cache("teacache", threshold=9.0)], ABLE)
    assert state(pipe) == before


def test_whole_without_a_denoiser_would_do_nothing_and_is_refused() -> None:
    with pytest.raises(RecipeError, match="'whole' is about denoisers, and its components name none"):
        accelerate(pipeline(num_single_layers=1), Compile(components=("vae",), whole=True), ABLE)


def test_the_cache_decides_outside_the_graphs() -> None:
    pipe = pipeline(num_single_layers=1)
    with no_codegen():
        fast = accelerate(pipe, [Compile(), Cache("teacache", threshold=9.0)], ABLE)
        run(fast, steps=5)
    facts = {one.name: one.facts for one in fast.engaged}
    assert facts["compile"]["graphs"] == 2
    assert facts["cache"]["steps_reused"] == 2 * 3


@pytest.mark.parametrize("scope", ["output", "guidance"])
def test_so_it_does_in_the_other_scopes(scope: str) -> None:
    pipe = pipeline(num_single_layers=1)
    with no_codegen():
        fast = accelerate(pipe, [Compile(), Cache(gate="always", scope=scope)], ABLE)
        run(fast, steps=4)
    facts = {one.name: one.facts for one in fast.engaged}
    assert facts["compile"]["graphs"] == 2
    assert facts["cache"]["steps_reused"] > 0


def test_regions_add_one_graph_a_class_for_their_number_of_tokens() -> None:
    """Attention is one operation in them: no break, and nothing that is decided in it, or by whom, is compiled in."""
    pipe = pipeline(num_layers=2, num_single_layers=2)
    with no_codegen():
        plain = accelerate(pipe, [Compile()], ABLE)
        run(plain, steps=2)
        graphs = plain.engaged[0].facts["graphs"]
        plain.remove()
        torch.compiler.reset()
        fast = accelerate(pipe, [Compile(), Regions(warmup=0)], ABLE)
        run(fast, steps=6)
        facts = {one.name: one.facts for one in fast.engaged}
        assert facts["regions"]["steps_regional"] > 0
        assert facts["compile"]["graphs"] == 2 * graphs
        run(fast, steps=8)
        assert facts["compile"]["graphs"] == 2 * graphs


def test_attention_as_a_scope_does_not_go_with_it() -> None:
    with pytest.raises(RecipeError, match=r"both change block\.code"):
        accelerate(pipeline(), [Compile(), Cache("pab")], ABLE)


def test_a_region_that_never_ran_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline(num_single_layers=1)
    fast = accelerate(pipe, Compile(components=("vae",)), ABLE)
    with pytest.warns(RuntimeWarning, match="never ran vae: Decoder"):
        run(fast, steps=1)  # latents only


def test_problems() -> None:
    model: Any = Model(pipeline())
    assert Compile().problems(model, ABLE) == []
    assert Compile().problems(model, BARE) == [BARE.missing("compile")]
    (unknown,) = Compile(components=("unet",)).problems(model, ABLE)
    assert "'unet'" in unknown


@pytest.mark.parametrize("fields", [{"mode": "fastest"}, {"components": "vae"}, {"dynamic": 1}])
def test_bad_fields(fields: dict[str, object]) -> None:
    with pytest.raises(InputError, match="of Compile must be"):
        Compile(**fields)  # type: ignore[arg-type]
