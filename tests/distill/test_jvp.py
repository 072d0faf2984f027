"""Derivatives along a direction: against closed forms, and what happens where forward mode fails or lies."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fewstep.distill.jvp import checked, difference, jvp
from tests.distill.toys import net


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, dx = (torch.randn(6, 2, generator=generator) for _ in range(2))
    return (x, torch.rand(6, generator=generator)), (dx, torch.ones(6))


def wave(x, t):
    return (x * t[:, None].exp()).sin()


@pytest.mark.parametrize("derivative", [jvp, difference])
def test_a_derivative_is_the_one_computed_by_hand(derivative):
    (x, t), (dx, dt) = inputs()
    value, slope = derivative(wave, (x, t), (dx, dt))
    grown = x * t[:, None].exp()
    torch.testing.assert_close(value, grown.sin())
    torch.testing.assert_close(slope, grown.cos() * (dx * t[:, None].exp() + grown * dt[:, None]), rtol=1e-3, atol=1e-3)


def test_the_difference_is_of_second_order():
    x, dx = (tuple(one.double() for one in some) for some in inputs())
    exact = jvp(wave, x, dx)[1]
    coarse, fine = (float((difference(wave, x, dx, step)[1] - exact).norm()) for step in (0.02, 0.01))
    assert coarse / fine == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("derivative", [jvp, difference])
def test_gradients_autocast_and_randomness_stay_outside(derivative):
    seen = []

    def f(x, t):
        seen.append((x @ x.T).dtype)
        return F.dropout(layers(x, t), 0.5, training=True)

    student = net()
    x, dx = inputs()

    def layers(x, t):
        return student(x, t, torch.zeros(len(x), dtype=torch.long))

    before = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        value, slope = derivative(f, x, dx)
    assert torch.equal(before, torch.get_rng_state())
    assert set(seen) == {torch.float32}
    assert not value.requires_grad
    assert not slope.requires_grad
    assert torch.equal(value == 0, slope == 0)  # one mask for both, about half of it
    assert torch.equal(value, f(*x))  # and for the call that comes next
    assert 0 < float((value == 0).float().mean()) < 1


def test_pytorchs_attention_is_differentiated_exactly():
    """Its fused kernel has no forward mode, and `jvp` must not need a warning for it."""
    x, dx = (torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(i)) for i in range(2))

    def attend(x):
        return F.scaled_dot_product_attention(x, x, x)

    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(attend, (x.clone(),), (dx,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checked(attend, (x,), (dx,)) is jvp
    torch.testing.assert_close(jvp(attend, (x,), (dx,))[1], difference(attend, (x,), (dx,))[1], rtol=1e-2, atol=1e-2)


class Kernel(torch.autograd.Function):
    """As attention of another library is: a backward pass and no forward mode."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def test_a_kernel_without_forward_mode_falls_back_and_is_named():
    x, dx = inputs()
    with pytest.warns(RuntimeWarning, match=r"by a finite difference: forward mode fails \(.*autograd.Function"):
        derivative = checked(lambda x, t: Kernel.apply(wave(x, t)), x, dx)
    torch.testing.assert_close(derivative(wave, x, dx)[1], jvp(wave, x, dx)[1], rtol=1e-3, atol=1e-3)


def test_a_derivative_that_is_wrong_falls_back():
    """A network that detaches its time: forward mode takes it for a constant and says nothing."""
    x, dx = inputs()
    with pytest.warns(RuntimeWarning, match=r"by a finite difference: forward mode is \d+% off"):
        derivative = checked(lambda x, t: wave(x, t.detach()), x, dx)
    torch.testing.assert_close(derivative(wave, x, dx)[1], jvp(wave, x, dx)[1], rtol=1e-3, atol=1e-3)


def test_a_difference_that_proves_nothing_leaves_forward_mode():
    """Rounding as coarse as TF32's: differences of two steps disagree with each other."""
    x, dx = inputs()

    def rounded(x, t):
        exact = wave(x, t)
        return exact + ((exact * 256).round() / 256 - exact).detach()

    with pytest.warns(RuntimeWarning, match="by forward mode: it could not be checked"):
        assert checked(rounded, x, dx) is jvp


def test_a_compiled_network_is_differentiated():
    student: nn.Module = net()
    x, dx = inputs()
    f = lambda x, t: student(x, t, torch.zeros(6, dtype=torch.long))  # noqa: E731
    plain = jvp(f, x, dx)[1]
    student.compile(backend="aot_eager")
    torch.testing.assert_close(jvp(f, x, dx)[1], plain)
