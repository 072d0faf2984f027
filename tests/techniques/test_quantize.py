"""Which layers are quantized, what is counted, and what a recipe may say."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from peft import LoraConfig
from torch import nn

from fewstep.accelerate import accelerate
from fewstep.errors import InputError, RecipeError
from fewstep.models.model import Model
from fewstep.numerics.schemes import SCHEMES
from fewstep.recipe import Recipe
from fewstep.techniques import Compile, Precision, Quantize, quantize
from fewstep.techniques.linears import EmulatedLinear, Int8Linear, stored_bytes
from fewstep.techniques.linears.layers import Layer, hint, skip_reason
from tests.techniques.test_linears import BLACKWELL
from tests.techniques.tiny import ABLE, BARE, distance, no_codegen, pipeline, run, state

SMALL = {"min_features": 64}
RULES = {"skip": ("mlp",), "least": 128, "tile": (1, 1)}


@pytest.mark.parametrize(
    ("path", "shape", "rules", "reason"),
    [
        ("blocks.0.attn.to_q", (192, 192), {}, None),
        ("blocks.0.mlp.up", (192, 192), {}, "named in 'skip'"),
        ("blocks.0.attn.to_q", (192, 127), {}, "smaller than 128"),
        ("blocks.0.attn.to_q", (192, 200), {"tile": (1, 16)}, "no multiple of 1×16"),
        ("blocks.0.attn.to_q", (200, 192), {"tile": (1, 16)}, None),
    ],
)
def test_skip_reason(path: str, shape: tuple[int, ...], rules: dict[str, object], reason: str | None) -> None:
    assert skip_reason(path, shape, **{**RULES, **rules}) == reason  # type: ignore[arg-type]


def test_hints() -> None:
    rules = {"blocks": ("blocks.0.", "blocks.1."), "keep": ("norm",)}
    assert hint("blocks.1.attn.to_q", **rules) is None
    assert hint("x_embedder", **rules) == "outside the blocks"
    assert hint("blocks.10.attn.to_q", **rules) == "outside the blocks"
    assert hint("blocks.0.norm1.linear", **rules) == "named by the model's family"


def test_facts_count_every_layer_and_byte() -> None:
    pipe = pipeline()
    linears = [m for m in pipe.transformer.modules() if type(m) is nn.Linear]
    fast = accelerate(pipe, Quantize(**SMALL), ABLE)
    facts = fast.engaged[0].facts
    quantized = [m for m in pipe.transformer.modules() if isinstance(m, Int8Linear)]
    assert facts["layers_quantized"] == len(quantized) == 12 + 2 * 5
    assert facts["layers_quantized"] + facts["layers_skipped"] == len(linears)
    assert sum(facts["skipped"].values()) == facts["layers_skipped"]
    assert facts["bytes_after"] == sum(map(stored_bytes, quantized))
    assert facts["bytes_before"] > 3 * facts["bytes_after"]
    assert (facts["schemes"], facts["emulated"]) == ({"transformer": "int8-dynamic"}, False)


def test_named_layers_are_left_alone() -> None:
    pipe = pipeline()
    accelerate(pipe, Quantize(**SMALL, skip=("to_q",)), ABLE)
    assert type(pipe.transformer.transformer_blocks[0].attn.to_q) is nn.Linear
    assert isinstance(pipe.transformer.transformer_blocks[0].attn.to_k, Int8Linear)


def test_full_names_take_the_place_of_the_hints() -> None:
    pipe = pipeline()
    keep = ("transformer.transformer_blocks.0.attn.to_q", "transformer.proj_out")
    fast = accelerate(pipe, Quantize(**SMALL, keep=keep), ABLE)
    blocks = pipe.transformer.single_transformer_blocks
    assert type(pipe.transformer.transformer_blocks[0].attn.to_q) is nn.Linear
    assert isinstance(blocks[0].attn.to_q, Int8Linear)  # the same words within another name
    assert isinstance(blocks[0].norm.linear, Int8Linear)
    assert isinstance(pipe.transformer.x_embedder, nn.Linear)  # too few features
    assert fast.engaged[0].facts["skipped"]["named in 'keep'"] == 2
    (problem,) = Quantize(**SMALL, keep=("transformer.nowhere",)).problems(Model(pipeline()), ABLE)
    assert "transformer.nowhere" in problem


def adapted() -> Any:
    """A pipeline with a LoRA that does something."""
    pipe = pipeline()
    targets = ["to_q", "proj_mlp"]
    pipe.transformer.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=targets, init_lora_weights=False))
    return pipe


def test_a_lora_stays_precise_beside_quantized_layers() -> None:
    pipe = adapted()
    with_lora, without = run(pipe), run(pipeline())
    fast = accelerate(pipe, Quantize(min_features=8), ABLE)
    assert fast.engaged[0].facts["skipped"]["of a LoRA adapter"] == 10  # of three layers of attention and two of MLPs
    assert isinstance(pipe.transformer.transformer_blocks[0].attn.to_q.base_layer, Int8Linear)
    assert distance(run(fast), with_lora) < 0.1 * distance(without, with_lora)
    fast.remove()
    assert torch.equal(run(pipe), with_lora)


def test_a_lora_over_quantized_layers_is_refused_with_the_way_to_do_it() -> None:
    fast = accelerate(pipeline(), Quantize(min_features=8), ABLE)
    with pytest.raises(InputError, match="loaded before layers are quantized"):
        fast.load_lora_weights("anything")


def test_a_lora_over_other_techniques_is_the_pipelines_own_affair(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = accelerate(pipeline(), Precision(), ABLE)
    asked: list[str] = []
    monkeypatch.setattr(type(fast.pipe), "load_lora_weights", lambda self, source: asked.append(source))
    fast.load_lora_weights("anything")
    assert asked == ["anything"]


def test_the_picture_stays() -> None:
    pipe = pipeline()
    plain = run(pipe)
    assert 0 < distance(run(accelerate(pipe, Quantize(**SMALL), ABLE)), plain) < 0.02


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if "block" not in name])
@pytest.mark.filterwarnings("ignore:Quantize emulates")
def test_every_scheme_can_be_emulated_on_a_machine_that_has_none(scheme: str) -> None:
    pipe = pipeline()
    before, plain = state(pipe), run(pipe, steps=2)
    fast = accelerate(pipe, Quantize(scheme, **SMALL, emulate=True), BARE)
    assert 0 < distance(run(fast, steps=2), plain) < 0.1
    facts = fast.engaged[0].facts
    assert facts["emulated"]
    assert facts["bytes_after"] == sum(stored_bytes(m) for m in _emulated(pipe))
    fast.remove()
    assert state(pipe) == before
    assert torch.equal(run(pipe, steps=2), plain)


def _emulated(pipe) -> list[nn.Module]:
    return [m for m in pipe.transformer.modules() if isinstance(m, EmulatedLinear)]


def test_emulation_is_loud_at_every_call() -> None:
    fast = accelerate(pipeline(), Quantize("nvfp4", **SMALL, emulate=True), BARE)
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="emulates nvfp4: the quality is the scheme's, the time is not"):
            run(fast, steps=1)


@pytest.mark.filterwarnings("ignore:Quantize emulates")
def test_emulation_stacks_with_precision_and_compile() -> None:
    pipe = pipeline(num_single_layers=1)
    plain = run(pipe, steps=2)
    stack = (Precision(components=("transformer",)), Quantize("fp8-dynamic", **SMALL, emulate=True), Compile())
    with no_codegen():
        assert distance(run(accelerate(pipe, stack, ABLE), steps=2), plain) < 0.05


@pytest.mark.filterwarnings("ignore:Quantize emulates")
def test_smoothing_is_calibrated() -> None:
    pipe = pipeline()
    generator, plain = torch.get_rng_state(), run(pipe, steps=2)
    fast = accelerate(pipe, Quantize("svd-int4", **SMALL, emulate=True, smooth=0.5), BARE)
    assert torch.equal(torch.get_rng_state(), generator)
    layers = _emulated(pipe)
    assert all(layer.smooth is not None and not torch.equal(layer.smooth, torch.ones(1)) for layer in layers)
    assert distance(run(fast, steps=2), plain) < 0.1


# ---------------------------------------------------------------------------------------------------------------------
# Components


@pytest.mark.filterwarnings("ignore:Quantize emulates")
def test_each_component_has_its_scheme_and_convolutions_are_counted() -> None:
    pipe = pipeline()
    pipe.vae = AutoencoderKL(**{**pipe.vae.config, "mid_block_add_attention": True})  # the zoo's has convolutions only
    before, plain = state(pipe), run(pipe, steps=2, output_type="pt")
    parts = {"transformer": "int8-dynamic", "text_encoder_2": "fp8-weight-only", "vae": "int8-weight-only"}
    fast = accelerate(pipe, Quantize(components=parts, min_features=16, emulate=True), BARE)
    made = {name: [m for m in pipe.components[name].modules() if isinstance(m, EmulatedLinear)] for name in parts}
    assert all(made.values())
    assert {name: {m.scheme.name for m in found} for name, found in made.items()} == {k: {v} for k, v in parts.items()}
    facts = fast.engaged[0].facts
    convolutions = [m for m in pipe.vae.modules() if isinstance(m, nn.Conv2d)]
    assert facts["skipped"]["a convolution"] == len(convolutions) > 0
    assert facts["schemes"] == parts
    assert distance(run(fast, steps=2, output_type="pt"), plain) < 0.1
    fast.remove()
    assert state(pipe) == before


def test_a_component_with_nothing_to_quantize_is_named() -> None:
    both = Quantize(components={"transformer": "int8-dynamic", "vae": "int8-dynamic"}, **SMALL)
    with pytest.raises(RecipeError, match=r"no layer to quantize in the vae of FluxPipeline: a convolution \(\d+\)"):
        accelerate(pipeline(), both, ABLE)


def test_a_text_encoder_alone_by_the_real_kernel() -> None:
    pipe = pipeline()
    plain = run(pipe, steps=2)
    fast = accelerate(pipe, Quantize(components={"text_encoder_2": "int8-dynamic"}, **SMALL), ABLE)
    assert not any(isinstance(m, Int8Linear) for m in pipe.transformer.modules())
    assert 0 < distance(run(fast, steps=2), plain) < 0.05


def test_components_in_a_recipe_file(tmp_path: Path) -> None:
    technique = Quantize(components={"transformer": "nvfp4", "vae": "int8-dynamic"}, emulate=True, precise_steps=(1, 2))
    hash(technique)
    for suffix in (".yaml", ".json"):
        Recipe((technique,)).save(tmp_path / f"recipe{suffix}")
        assert Recipe.load(tmp_path / f"recipe{suffix}").techniques == (technique,)
    assert technique.given()["components"] == {"transformer": "nvfp4", "vae": "int8-dynamic"}


def test_an_unknown_component_is_a_problem() -> None:
    (problem,) = Quantize(components={"unet": "int8-dynamic"}).problems(Model(pipeline()), ABLE)
    assert "'components' of Quantize" in problem


# ---------------------------------------------------------------------------------------------------------------------
# What can't be


def test_nothing_to_quantize_is_a_problem() -> None:
    (problem,) = Quantize(min_features=4096).problems(Model(pipeline()), ABLE)
    assert "found no layer" in problem


def test_fp8_on_a_cpu_is_one_sentence() -> None:
    with pytest.raises(RecipeError) as caught:
        accelerate(pipeline(), Quantize(scheme="fp8-dynamic", min_features=16), ABLE)
    assert caught.value.problems == (ABLE.missing("fp8"),)


def test_a_kernel_that_takes_bfloat16_only_asks_for_it() -> None:
    pipe = pipeline()
    assert Quantize("mxfp8", **SMALL).problems(Model(pipe), BLACKWELL) == []
    with pytest.raises(InputError, match="put precision into the recipe"):
        accelerate(pipe, Quantize("mxfp8", **SMALL), BLACKWELL)


def test_a_layer_that_fails_leaves_the_others_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def failing(layer: Layer, *rest: object) -> nn.Module:
        made.append(1)
        if len(made) == 3:
            raise RuntimeError("out of memory")
        return Int8Linear(layer.linear)

    monkeypatch.setattr(quantize, "_converted", failing)
    pipe = pipeline()
    with pytest.raises(RuntimeError, match="out of memory"):
        accelerate(pipe, Quantize(min_features=16), ABLE)
    assert not any(isinstance(m, Int8Linear) for m in pipe.transformer.modules())


@pytest.mark.parametrize(
    "fields",
    [
        {"scheme": "int3"},
        {"skip": "to_q"},
        {"min_features": 0},
        {"min_features": True},
        {"components": {"transformer": "int3"}},
        {"components": "transformer"},
        {"emulate": 1},
        {"keep": "proj_out"},
        {"keep": (), "budget": 0.02},
        {"budget": 0},
        {"budget": "a lot"},
        {"prompts": ()},
        {"smooth": 0.5},
        {"smooth": 2, "emulate": True},
        {"precise_steps": 3},
        {"precise_steps": (1, -1)},
    ],
)
def test_bad_fields(fields: dict[str, object]) -> None:
    with pytest.raises(InputError, match="of Quantize must be"):
        Quantize(**fields)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------------
# Precision over steps


def test_the_ends_run_the_layers_as_they_were() -> None:
    fast = accelerate(pipeline(), Quantize(**SMALL, precise_steps=(1, 2)), ABLE)
    run(fast, steps=5)
    facts = fast.engaged[0].facts
    assert (facts["steps_precise"], facts["steps_quantized"]) == (2 * 3, 2 * 2)  # guided: two calls a step


def test_precise_steps_over_all_are_the_plain_picture_and_a_warning() -> None:
    pipe = pipeline()
    plain = run(pipe, steps=3)
    fast = accelerate(pipe, Quantize(**SMALL, precise_steps=(2, 1)), ABLE)
    with pytest.warns(RuntimeWarning, match="ran no step with quantized layers"):
        assert torch.equal(run(fast, steps=3), plain)


def test_precise_ends_bring_the_picture_nearer() -> None:
    plain = run(pipeline(), steps=6)
    away = [
        distance(run(accelerate(pipeline(), Quantize("int4-weight-only", **SMALL, emulate=True, precise_steps=e), BARE),
                     steps=6), plain)
        for e in ((0, 0), (1, 1), (2, 2))
    ]  # fmt: skip
    assert away[0] > away[1] > away[2] > 0


def test_steps_belong_to_a_request_and_come_off_to_the_bit() -> None:
    pipe = pipeline()
    before, plain = state(pipe), run(pipe, steps=5)
    fast = accelerate(pipe, Quantize(**SMALL, precise_steps=(1, 1)), ABLE)
    first = run(fast, steps=5)
    run(fast, steps=3)
    assert torch.equal(run(fast, steps=5), first)
    assert torch.equal(run(fast.pipe, steps=5), first)  # without the accelerated call
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        run(fast, steps=3)
    fast.remove()
    assert state(pipe) == before
    assert torch.equal(run(pipe, steps=5), plain)


def test_steps_are_told_apart_outside_the_graphs() -> None:
    pipe = pipeline(num_single_layers=1)
    technique = Quantize(**SMALL, precise_steps=(1, 1))
    expected = run(accelerate(pipeline(num_single_layers=1), technique, ABLE), steps=5)
    with no_codegen():
        fast = accelerate(pipe, (technique, Compile()), ABLE)
        assert distance(run(fast, steps=5), expected) < 1e-5
        graphs = fast.engaged[1].facts["graphs"]
        assert graphs == 2 * 2  # two classes of blocks, precise and quantized
        run(fast, steps=5)
        assert fast.engaged[1].facts["graphs"] == graphs
