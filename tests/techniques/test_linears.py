"""Linear layers in few bits: the emulation against real kernels and against the arithmetic written out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fewstep.machine import Machine
from fewstep.numerics.quantized import dequantize, fake
from fewstep.numerics.schemes import SCHEMES, Scheme
from fewstep.techniques.linears import KERNELS, EmulatedLinear, Int8Linear, int8, int8_scales, torchao_linear
from fewstep.techniques.linears.emulated import low_rank, smoothing
from fewstep.techniques.linears.kernels import convert, problem, stored_bytes, tile
from tests.techniques.tiny import ABLE, BARE, distance

BLACKWELL = Machine("cuda", "a GPU that can all", 8, 192.0, frozenset({"bf16", "int8", "fp8", "nvfp4", "compile"}))
AMPERE = Machine("cuda", "a GPU without FP8", 8, 40.0, frozenset({"bf16", "int8", "compile"}))
AT_MOST = {"int8": 0.012, "fp8": 0.05, "mxfp8": 0.06, "nvfp4": 0.17, "int4": 0.17, "svd": 0.17}  # of a random layer


def layer(inputs: int = 256, outputs: int = 128, bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias)


def given(inputs: int = 256) -> Tensor:
    return torch.randn(2, 20, inputs, generator=torch.Generator().manual_seed(1))


def gapped() -> nn.Linear:
    """Every second weight is 0: products that kernels add in pairs of 16 bits can't overflow, on any CPU."""
    linear = layer()
    with torch.no_grad():
        linear.weight[:, 1::2] = 0
    return linear


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("bias", [True, False])
def test_every_scheme_is_the_product_of_its_rounded_parts(scheme: Scheme, bias: bool) -> None:
    linear, x = layer(bias=bias), given()
    made = EmulatedLinear(linear, scheme)
    seen = fake(x, scheme.input) if scheme.input else x
    expected = seen @ dequantize(made.quantized).T
    if scheme.rank:
        down, up = low_rank(linear.weight.detach(), scheme.rank)
        expected = expected + x @ (up @ down).T
    torch.testing.assert_close(made(x), expected + linear.bias if bias else expected, rtol=1e-4, atol=1e-5)
    assert 0 < distance(made(x), linear(x)) < AT_MOST[scheme.name.split("-")[0]]
    assert made.quantized.faults() == []
    assert (made.weight.shape, made.weight.dtype) == (linear.weight.shape, linear.weight.dtype)
    assert "weight" not in dict(made.named_parameters())


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_in_bfloat16_the_product_is_bfloat16_and_near(scheme: Scheme) -> None:
    linear, x = layer(128, 128).bfloat16(), given(128)[:1, :4].bfloat16()
    got = EmulatedLinear(linear, scheme)(x)
    assert got.dtype == torch.bfloat16
    assert distance(got, linear(x)) < 0.01 + AT_MOST[scheme.name.split("-")[0]]


def test_bytes_are_those_of_the_scheme() -> None:
    for scheme in SCHEMES.values():
        if not scheme.rank:
            made = EmulatedLinear(layer(1024, 1024, bias=False), scheme)
            assert stored_bytes(made) == pytest.approx(1024 * 1024 * scheme.bits / 8, rel=0.005)


@pytest.mark.parametrize("by_token", [True, False])
def test_the_emulation_agrees_with_the_cpu_kernels(by_token: bool) -> None:
    linear, x = gapped(), given()
    emulated = EmulatedLinear(linear, SCHEMES["int8-dynamic"], rounded=None if by_token else int8.rounded_input)
    assert distance(emulated(x), Int8Linear(linear, by_token=by_token)(x)) < 1e-5


def test_by_token_a_picture_does_not_depend_on_its_batch_mates() -> None:
    made, x = Int8Linear(layer(), by_token=True), given()
    torch.testing.assert_close(made(torch.cat([x, 100 * x]))[:2], made(x), rtol=0, atol=0)


def test_the_kernel_of_this_cpu_is_what_is_emulated() -> None:
    linear, x = gapped(), given()
    real, emulated = (convert(linear, SCHEMES["int8-dynamic"], "cpu", emulate=emulate) for emulate in (False, True))
    assert distance(real(x), emulated(x)) < 1e-5


@pytest.mark.parametrize("scheme", ["fp8-weight-only", "nvfp4-weight-only"])
def test_the_emulation_agrees_with_torchao(scheme: str) -> None:
    linear, x = layer(), given()
    assert distance(EmulatedLinear(linear, SCHEMES[scheme])(x), torchao_linear(linear, scheme)(x)) < 1e-3


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-weight-only"])
def test_torchaos_int8_differs_in_its_range_only(scheme: str) -> None:
    """It takes the largest value to 127.5 and −128 to −128, where ours is symmetric: with that, they agree."""
    linear, x = layer(), given()
    theirs = torchao_linear(linear, scheme)(x)
    assert distance(EmulatedLinear(linear, SCHEMES[scheme])(x), linear(x)) == pytest.approx(
        distance(theirs, linear(x)), rel=0.1
    )

    def wide(values: Tensor) -> tuple[Tensor, Tensor]:
        scale = values.abs().amax(-1, keepdim=True) / 127.5
        return (values / scale).round().clamp(-128, 127), scale

    def rounded(values: Tensor) -> Tensor:
        codes, scale = wide(values.float())
        return codes * scale

    ours = EmulatedLinear(linear, SCHEMES[scheme], rounded=rounded)
    codes, ours.scale = wide(linear.weight.detach())
    ours.codes = codes.to(torch.int8)
    assert distance(ours(x), theirs) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cpu_kernel_is_right_with_any_weights(dtype: torch.dtype) -> None:
    linear, x = layer(48, 32), given(48).to(dtype)
    got = Int8Linear(linear)(x)
    assert got.dtype == dtype
    expected = convert(linear, SCHEMES["int8-dynamic"], "cpu", emulate=True)(x.float())
    assert distance(got, expected) < (2e-3 if dtype == torch.float32 else 6e-3)


def test_the_cpu_kernels_input_and_weights_by_hand() -> None:
    x = torch.tensor([-1.0, 0.0, 0.3, 1.55])  # a step is 2.55 / 255 = 0.01
    torch.testing.assert_close(int8.rounded_input(x + 0.004), torch.tensor([-1.0, 0.0, 0.3, 1.55]), rtol=0, atol=5e-3)
    assert torch.equal(int8.rounded_input(torch.zeros(3)), torch.zeros(3))
    assert int8_scales(torch.tensor([[0.0, 0.0], [-254.0, 1.0]])).tolist() == [1.0, 2.0]


def test_a_channel_of_zeros_is_no_division_by_zero() -> None:
    linear = layer(128, 128)
    nn.init.zeros_(linear.weight)
    x = given(128)
    for scheme in SCHEMES.values():
        torch.testing.assert_close(EmulatedLinear(linear, scheme)(x), linear.bias.expand(2, 20, 128))
    for by_token in (True, False):
        assert torch.equal(Int8Linear(linear, by_token=by_token)(x), linear.bias.expand(2, 20, 128))
    with torch.no_grad():
        assert torch.equal(Int8Linear(layer(), by_token=True)(0 * given()), layer().bias.expand(2, 20, 128))


def test_packed_weights_go_with_their_layer() -> None:
    made = Int8Linear(nn.Linear(8, 8))
    slot = int(made.slot)
    assert slot in int8._packed
    del made
    assert slot not in int8._packed


def test_a_copy_of_a_layer_outlives_it() -> None:
    made, x = Int8Linear(layer()), given()
    slot, wanted, twin = int(made.slot), made(x), copy.deepcopy(made)
    del made
    assert torch.equal(twin(x), wanted)
    del twin
    assert slot not in int8._packed


# ---------------------------------------------------------------------------------------------------------------------
# The low-rank branch


def with_outliers() -> nn.Linear:
    """A weight of rank 8 that is large, under small noise: what plain 4 bits lose."""
    linear = layer()
    with torch.no_grad():
        linear.weight.add_(torch.randn(128, 8) @ torch.randn(8, 256))
        linear.weight[:, ::37] *= 10
    return linear


@pytest.mark.parametrize("element", ["int4", "nvfp4"])
def test_a_low_rank_branch_takes_the_outliers(element: str) -> None:
    linear, x = with_outliers(), given()
    plain = Scheme("plain", SCHEMES[f"svd-{element}"].weight, SCHEMES[f"svd-{element}"].input, "")
    errors = [distance(EmulatedLinear(linear, s)(x), linear(x)) for s in (SCHEMES[f"svd-{element}"], plain)]
    assert errors[0] < 0.5 * errors[1]


def test_a_branch_of_full_rank_leaves_nothing_to_quantize() -> None:
    linear, x = layer(64, 64), given(64)
    whole = Scheme("whole", SCHEMES["svd-int4"].weight, SCHEMES["svd-int4"].input, "", rank=64)
    torch.testing.assert_close(EmulatedLinear(linear, whole)(x), linear(x), rtol=1e-4, atol=1e-5)


def test_the_branch_is_the_nearest_of_its_rank() -> None:
    weight = layer().weight.detach()
    down, up = low_rank(weight, 5)
    s = torch.linalg.svdvals(weight)
    assert float((weight - up @ down).norm()) == pytest.approx(float(s[5:].norm()), rel=1e-4)  # Eckart–Young


def test_smoothing_moves_outliers_of_the_input_into_the_weight() -> None:
    linear, x = layer(), given()
    x = torch.where(torch.arange(256) % 32 == 5, 30 * x, x)
    factor = smoothing(x.abs().flatten(0, -2).amax(0), linear.weight.detach(), 0.5)
    for name in ("int8-dynamic", "svd-int4"):
        smooth, plain = (EmulatedLinear(linear, SCHEMES[name], given_) for given_ in (factor, None))
        assert distance(smooth(x), linear(x)) < 0.7 * distance(plain(x), linear(x))
    assert smoothing(torch.zeros(256), linear.weight.detach(), 0.5).tolist() == [1.0] * 256


# ---------------------------------------------------------------------------------------------------------------------
# The table of kernels


def test_every_kernel_is_of_a_scheme() -> None:
    assert {name for name, _ in KERNELS} <= set(SCHEMES)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("machine", [ABLE, BARE, BLACKWELL, AMPERE], ids=lambda m: m.name)
def test_what_can_not_run_is_one_sentence(name: str, machine: Machine) -> None:
    found = problem(SCHEMES[name], machine)
    if found is None:
        assert (name, machine.device) in KERNELS
        return
    assert found.endswith(".")
    assert "\n" not in found
    assert found.count(". ") == 0


def test_what_runs_where() -> None:
    assert [name for name in SCHEMES if problem(SCHEMES[name], ABLE) is None] == ["int8-dynamic"]
    assert [name for name in SCHEMES if problem(SCHEMES[name], BARE) is None] == []
    fails = [name for name in SCHEMES if problem(SCHEMES[name], BLACKWELL) is not None]
    assert fails == ["fp8-dynamic-block", "int4-weight-only", "svd-int4", "svd-nvfp4"]
    assert problem(SCHEMES["fp8-dynamic"], ABLE) == ABLE.missing("fp8")
    assert problem(SCHEMES["nvfp4"], AMPERE) == AMPERE.missing("nvfp4")
    assert "use int8-dynamic here" in (problem(SCHEMES["int8-weight-only"], ABLE) or "")
    assert "run it on cuda" in (problem(SCHEMES["int8-weight-only"], ABLE) or "")


def test_sizes_that_the_blocks_and_the_kernels_take() -> None:
    tiles = {name: tile(SCHEMES[name], "cpu", emulate=True) for name in SCHEMES}
    assert tiles["int8-dynamic"] == (1, 1)
    assert tiles["fp8-dynamic-block"] == (128, 128)
    assert tiles["nvfp4"] == (1, 16)
    assert tiles["int4-weight-only"] == (1, 64)
    assert tile(SCHEMES["fp8-dynamic"], "cuda", emulate=False) == (16, 16)
    assert tile(SCHEMES["fp8-dynamic"], "cuda", emulate=True) == (1, 1)
