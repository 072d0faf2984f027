"""The canonical quantized tensor: what is made is whole, reads back close, and says what is wrong with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fewstep.errors import InputError
from fewstep.numerics.quantized import WHOLE, Layout, Quantized, dequantize, fake, outline, quantize
from fewstep.numerics.schemes import SCHEMES, Scheme

LAYOUTS = {scheme.weight for scheme in SCHEMES.values()} | {s.input for s in SCHEMES.values() if s.input}
NVFP4 = SCHEMES["nvfp4"].weight


def weights(rows: int = 128, columns: int = 256) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def error(x: torch.Tensor, layout: Layout) -> float:
    return float((fake(x, layout) - x).norm() / x.norm())


@pytest.mark.parametrize("layout", sorted(LAYOUTS, key=str), ids=str)
def test_what_is_made_is_whole_and_close(layout: Layout) -> None:
    made = quantize(weights(), layout)
    assert made.faults() == []
    assert made.shape == (128, 256)
    assert error(weights(), layout) < {"int8": 0.01, "e4m3": 0.03, "e2m1": 0.12, "int4": 0.12}[layout.element]


@pytest.mark.parametrize("layout", sorted(LAYOUTS, key=str), ids=str)
def test_quantizing_what_was_read_back_changes_nothing(layout: Layout) -> None:
    once = dequantize(quantize(weights(), layout))
    assert torch.allclose(dequantize(quantize(once, layout)), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", sorted(LAYOUTS, key=str), ids=str)
def test_zeros_stay_zeros(layout: Layout) -> None:
    made = quantize(torch.zeros(128, 256), layout)
    assert made.faults() == []
    assert not dequantize(made).any()


def test_nvfp4_is_its_definition() -> None:
    """One block by hand: s2 = amax/(6·448), s_b = e4m3(amax_b/(6·s2)), q = e2m1(w/(s_b·s2))."""
    x = weights(1, 32)
    s2 = x.abs().max() / (6 * 448)
    for block in range(2):
        part = x[0, 16 * block : 16 * (block + 1)]
        s_b = (part.abs().max() / (6 * s2)).to(torch.float8_e4m3fn)
        made = quantize(x, NVFP4)
        assert made.scale[0, block].float() == s_b.float()
        grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        grid = torch.cat((grid, -grid)) * s_b.float() * s2
        nearest = grid[(part[:, None] - grid).abs().argmin(1)]
        assert torch.allclose(dequantize(made)[0, 16 * block : 16 * (block + 1)], nearest, rtol=1e-5)


def test_power_of_two_scales_never_cut_a_value_off() -> None:
    layout = Layout("e4m3", (1, 32), "e8m0")
    scale = quantize(torch.full((1, 32), 448.0), layout).scale.float()
    assert scale.item() == 1.0
    assert quantize(torch.full((1, 32), 449.0), layout).scale.float().item() == 2.0


@pytest.mark.parametrize("layout", [NVFP4, Layout("e4m3", (WHOLE, WHOLE)), Layout("int8", (WHOLE, WHOLE))])
def test_matrices_can_share_the_scale_of_the_whole(layout: Layout) -> None:
    low, high = weights(), 3 * weights()
    amax = high.abs().amax()
    together = quantize(torch.cat((low, high)), layout)
    parts = [quantize(x, layout, amax) for x in (low, high)]
    assert torch.equal(torch.cat([part.codes.view(torch.uint8) for part in parts]), together.codes.view(torch.uint8))
    assert torch.equal(torch.cat([dequantize(part) for part in parts]), dequantize(together))
    assert all(part.faults() == [] for part in parts)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=list(SCHEMES))
def test_an_outline_is_what_is_made_without_its_numbers(scheme: Scheme) -> None:
    made, drawn = quantize(weights(), scheme.weight), outline(scheme.weight, tuple(weights().shape))
    for a, b in ((made.codes, drawn.codes), (made.scale, drawn.scale), (made.global_scale, drawn.global_scale)):
        assert (a is None and b is None) or (a.shape, a.dtype, b.is_meta) == (b.shape, b.dtype, True)


def test_blocks_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match="128×250 can't be cut into blocks of 1×16"):
        quantize(weights(128, 250), NVFP4)
    with pytest.raises(InputError, match="element of int8"):
        Layout("int3", (1, WHOLE))


def damaged() -> list[tuple[str, Quantized]]:
    good = quantize(weights(), NVFP4)
    assert good.global_scale is not None
    nan = good.scale.clone()
    nan.view(torch.uint8)[3, 5] = 0x7F
    negative = good.scale.clone()
    negative.view(torch.uint8)[3, 5] |= 0x80
    return [
        ("no global scale", replace(good, global_scale=None)),
        ("not finite|not a finite", replace(good, scale=nan)),
        ("negative", replace(good, scale=negative)),
        (r"scales are \(256, 8\)", replace(good, scale=good.scale.view(256, 8))),
        ("codes are torch.int8", replace(good, codes=good.codes.view(torch.int8))),
        ("scales are torch.float32", replace(good, scale=good.scale.float())),
        ("a global scale is not a finite", replace(good, global_scale=good.global_scale * torch.nan)),
    ]


@pytest.mark.parametrize(("told", "bad"), damaged(), ids=[told for told, _ in damaged()])
def test_what_is_wrong_is_told(told: str, bad: Quantized) -> None:
    import re

    assert any(re.search(told, fault) for fault in bad.faults())
