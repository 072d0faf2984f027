"""Guidance is found again from what it made, exactly; what is not of a known form is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewstep.errors import TraceError
from fewstep.models.tracing.guide import Guidance, explains, fit_guidance


def branches(count: int, steps: int = 3) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(2, 5, 8, generator=generator) for _ in range(count)] for _ in range(steps)]


def made(outputs: list[list[Tensor]], rule: Callable[..., Tensor]) -> list[Tensor]:
    return [rule(*step) for step in outputs]


@given(st.integers(11, 300).map(lambda n: n / 10), st.sampled_from([1.0, -1.0]))
@settings(max_examples=20, deadline=None)
def test_weights_come_out_exact(scale: float, sign: float) -> None:
    outputs = branches(2)
    found = fit_guidance(outputs, made(outputs, lambda u, c: sign * (u + scale * (c - u))))
    assert found.rule == "linear"
    assert found.sign == sign
    assert found.weights["cond"] == pytest.approx(scale, abs=1e-6)
    assert found.weights["uncond"] == pytest.approx(1 - scale, abs=1e-6)


def test_one_branch() -> None:
    outputs = branches(1)
    assert fit_guidance(outputs, made(outputs, lambda c: c)) == Guidance({"cond": 1.0})
    assert fit_guidance(outputs, made(outputs, lambda c: -c)) == Guidance({"cond": 1.0}, -1.0)


def test_three_branches_are_named_in_order() -> None:
    outputs = branches(3)
    found = fit_guidance(outputs, made(outputs, lambda u, c, skipped: u + 7 * (c - u) + 2.5 * (c - skipped)))
    assert found.weights == {"extra_1": -6.0, "cond": 9.5, "extra_2": -2.5}


def test_norm_of_the_cond_branch() -> None:
    def rule(c: Tensor, u: Tensor) -> Tensor:
        total = u + 4 * (c - u)
        return total * (c.norm(dim=-1, keepdim=True) / total.norm(dim=-1, keepdim=True))

    outputs = branches(2)
    assert fit_guidance(outputs, made(outputs, rule)) == Guidance({"cond": 4.0, "uncond": -3.0}, 1.0, "norm")
    negated = fit_guidance(outputs, [-y for y in made(outputs, rule)])
    assert negated == Guidance({"cond": 4.0, "uncond": -3.0}, -1.0, "norm")


@pytest.mark.parametrize("phi", [0.3, 0.7, 1.0])
def test_rescaled(phi: float) -> None:
    def rule(u: Tensor, c: Tensor) -> Tensor:
        total = u + 5 * (c - u)
        scaled = total * (c.std(dim=(1, 2), keepdim=True) / total.std(dim=(1, 2), keepdim=True))
        return phi * scaled + (1 - phi) * total

    outputs = branches(2)
    found = fit_guidance(outputs, made(outputs, rule))
    assert found.rule == "rescale"
    assert found.weights == {"uncond": -4.0, "cond": 5.0}
    assert found.phi == pytest.approx(phi, abs=1e-4)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda u, c: torch.tanh(u + 4 * (c - u)), "not made of the denoiser's outputs"),
        (lambda u, c: (u + 4 * (c - u)).clamp(-1, 1), "not made of the denoiser's outputs"),
        (lambda u, c: (u + c) / 2, "Two branches have the largest guidance weight"),
    ],
)
def test_what_is_not_known_is_refused(rule: Callable[..., Tensor], message: str) -> None:
    outputs = branches(2)
    with pytest.raises(TraceError, match=message):
        fit_guidance(outputs, made(outputs, rule))


def test_weights_that_change_are_refused_and_shown() -> None:
    outputs = branches(2)
    inputs = [u + s * (c - u) for s, (u, c) in zip((3.0, 4.0, 5.0), outputs, strict=True)]
    with pytest.raises(TraceError, match=r"change over the steps \(-2, 3; -3, 4; -4, 5\)"):
        fit_guidance(outputs, inputs)


def test_equal_branches_are_refused() -> None:
    outputs = [[c, c.clone()] for (c,) in branches(1)]
    with pytest.raises(TraceError, match="gave the same output"):
        fit_guidance(outputs, [c for c, _ in outputs])


def test_nearly_equal_branches_still_give_round_weights() -> None:
    outputs = [[u, u + 1e-3 * c] for u, c in branches(2)]
    assert fit_guidance(outputs, made(outputs, lambda u, c: u + 4 * (c - u))).weights == {"uncond": -3.0, "cond": 4.0}


def test_a_guidance_is_checked_against_what_it_should_make() -> None:
    (u, c), *_ = branches(2)
    guidance = Guidance({"uncond": -3.0, "cond": 4.0})
    assert explains(guidance, {"uncond": u, "cond": c}, u + 4 * (c - u))
    assert not explains(guidance, {"uncond": u, "cond": c}, u + 4.01 * (c - u))
