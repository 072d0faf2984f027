"""Which layers are quantized, and the INT8 product against its arithmetic written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewstep.accelerate import accelerate
from fewstep.errors import InputError, RecipeError
from fewstep.machine import Machine
from fewstep.models.model import Model
from fewstep.techniques import Quantize
from fewstep.techniques.linears import Int8Linear, int8_scales, stored_bytes
from fewstep.techniques.quantize import skip_reason
from tests.techniques.tiny import ABLE, distance, pipeline, run

RULES = {"in_block": True, "keep": ("norm",), "least": 128, "tile": 1}


@pytest.mark.parametrize(
    ("path", "shape", "rules", "reason"),
    [
        ("blocks.0.attn.to_q", (192, 192), {}, None),
        ("x_embedder", (192, 192), {"in_block": False}, "outside the blocks"),
        ("blocks.0.norm1.linear", (192, 192), {}, "named as one to keep precise"),
        ("blocks.0.attn.to_q", (192, 127), {}, "smaller than 128"),
        ("blocks.0.attn.to_q", (192, 200), {"tile": 16}, "no multiple of 16"),
    ],
)
def test_skip_reason(path: str, shape: tuple[int, ...], rules: dict[str, object], reason: str | None) -> None:
    assert skip_reason(path, shape, **{**RULES, **rules}) == reason  # type: ignore[arg-type]


@pytest.mark.skipif(
    Machine.detect().missing("int8") is not None, reason="without 8-bit dot products torch's sums saturate at 16 bits"
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_linear_is_the_rounded_product(bias: bool, dtype: torch.dtype) -> None:
    """Against the same arithmetic written out: weights symmetric by channel, input affine by tensor, exact integers."""
    linear = nn.Linear(48, 32, bias=bias)
    x = torch.randn(2, 5, 48).to(dtype)
    low, high = x.float().min().clamp(max=0), x.float().max().clamp(min=0)
    step = (high - low).double() / 255
    zero = (-low / step).round()
    rounded_x = ((x.double() / step).round() + zero).clamp(0, 255).sub(zero) * step
    scales = int8_scales(linear.weight)[:, None]
    rounded_weight = (linear.weight.double() / scales).round() * scales
    expected = rounded_x @ rounded_weight.T + (linear.bias.double() if bias else 0)
    got = Int8Linear(linear)(x)
    assert got.dtype == dtype
    assert distance(got, expected) < (2e-3 if dtype == torch.float32 else 6e-3)


def test_a_channel_of_zeros_is_no_division_by_zero() -> None:
    linear = nn.Linear(16, 4)
    nn.init.zeros_(linear.weight)
    assert torch.equal(Int8Linear(linear)(torch.randn(3, 16)), linear.bias.expand(3, 4))


def test_packed_weights_go_with_their_layer() -> None:
    from fewstep.techniques import linears

    layer = Int8Linear(nn.Linear(8, 8))
    slot = int(layer.slot)
    assert slot in linears._packed
    del layer
    assert slot not in linears._packed


def test_facts_count_every_layer_and_byte() -> None:
    pipe = pipeline()
    linears = [m for m in pipe.transformer.modules() if type(m) is nn.Linear]
    fast = accelerate(pipe, Quantize(min_features=64), ABLE)
    facts = fast.engaged[0].facts
    quantized = [m for m in pipe.transformer.modules() if isinstance(m, Int8Linear)]
    assert facts["layers_quantized"] == len(quantized) == 12 + 2 * 5
    assert facts["layers_quantized"] + facts["layers_skipped"] == len(linears)
    assert sum(facts["skipped"].values()) == facts["layers_skipped"]
    assert facts["bytes_after"] == sum(map(stored_bytes, quantized))
    assert facts["bytes_before"] > 3 * facts["bytes_after"]


def test_named_layers_are_left_alone() -> None:
    pipe = pipeline()
    accelerate(pipe, Quantize(min_features=64, skip=("to_q",)), ABLE)
    assert type(pipe.transformer.transformer_blocks[0].attn.to_q) is nn.Linear
    assert isinstance(pipe.transformer.transformer_blocks[0].attn.to_k, Int8Linear)


def test_the_picture_stays() -> None:
    pipe = pipeline()
    plain = run(pipe)
    assert 0 < distance(run(accelerate(pipe, Quantize(min_features=64), ABLE)), plain) < 0.02


def test_nothing_to_quantize_is_a_problem() -> None:
    (problem,) = Quantize(min_features=4096).problems(Model(pipeline()), ABLE)
    assert "found no layer" in problem


def test_fp8_on_a_cpu_is_one_sentence() -> None:
    with pytest.raises(RecipeError) as caught:
        accelerate(pipeline(), Quantize(scheme="fp8-dynamic", min_features=16), ABLE)
    assert caught.value.problems == (ABLE.missing("fp8"),)


def test_a_layer_that_fails_leaves_the_others_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def failing(self: Quantize, linear: nn.Linear, machine: Machine) -> nn.Module:
        made.append(1)
        if len(made) == 3:
            raise RuntimeError("out of memory")
        return Int8Linear(linear)

    monkeypatch.setattr(Quantize, "_convert", failing)
    pipe = pipeline()
    with pytest.raises(RuntimeError, match="out of memory"):
        accelerate(pipe, Quantize(min_features=16), ABLE)
    assert not any(isinstance(m, Int8Linear) for m in pipe.transformer.modules())


@pytest.mark.parametrize("fields", [{"scheme": "int3"}, {"skip": "to_q"}, {"min_features": 0}, {"min_features": True}])
def test_bad_fields(fields: dict[str, object]) -> None:
    with pytest.raises(InputError, match="of Quantize must be"):
        Quantize(**fields)  # type: ignore[arg-type]
