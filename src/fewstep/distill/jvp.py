"""Derivatives along a direction, which methods of continuous time take of their student.

`jvp` is exact: forward-mode differentiation, about the cost of two calls. Fused attention kernels have no forward mode
(pytorch issue 165530), so PyTorch's own attention runs its plain kernel meanwhile. `difference` is a central finite
difference of two calls, for networks with kernels of other libraries. `checked` says which of the two to use.

All run without gradient and outside of autocast, as a difference of bfloat16 numbers is mostly rounding, and leave the
random state as they found it: a student's next call has the dropout mask of the derivative.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Function = Callable[..., Tensor]
Derivative = Callable[[Function, Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, Tensor]]

STEP = 5e-3  # of the difference: the cube root of float32's precision, where rounding and curvature weigh the same
TOLERANCE = 0.05
BY_DIFFERENCE = "a finite difference"


def jvp(f: Function, inputs: Sequence[Tensor], tangents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """f(*inputs), and its derivative as the inputs move along the tangents (of their shapes and dtypes).

    Raises:
        RuntimeError: something in f has no forward mode.
    """
    with _apart_from_training(inputs[0].device), sdpa_kernel(SDPBackend.MATH):
        found: tuple[Tensor, Tensor] = torch.func.jvp(f, tuple(inputs), tuple(tangents))  # type: ignore[assignment]
    return found


def difference(
    f: Function, inputs: Sequence[Tensor], tangents: Sequence[Tensor], step: float = STEP
) -> tuple[Tensor, Tensor]:
    """The same by (f(x + step·v) − f(x − step·v)) / (2·step), off by O(step²)."""

    def moved(by: float) -> Tensor:
        with _apart_from_training(inputs[0].device):
            return f(*(x + by * v for x, v in zip(inputs, tangents, strict=True)))

    return moved(0.0), (moved(step) - moved(-step)) / (2 * step)


def checked(
    f: Function, inputs: Sequence[Tensor], tangents: Sequence[Tensor], tolerance: float = TOLERANCE
) -> Derivative:
    """`jvp` where it works on f and agrees with `difference`, else `difference`, with a RuntimeWarning that says why.

    Differences of three steps are tried, as networks differ in how fast they change with the time.

    Forward mode may fail (a kernel without it, too little memory) or be wrong (an input that f detaches). Where
    differences of two steps do not agree themselves, which TF32 convolutions can do, they prove nothing against `jvp`,
    and it stays. Take it once, before training, so that a resumed run takes the same.

    Args:
        tolerance: norm of the disagreement, relative to the derivative's.
    """
    exact, why = None, ""
    try:
        exact = jvp(f, inputs, tangents)[1]
    except RuntimeError as error:
        why = f"forward mode fails ({str(error).splitlines()[0]})"
    best, least, found = STEP, float("inf"), float("inf")
    for step in (STEP, STEP / 10, STEP / 100):  # networks that embed 1000·t change within a hundredth of a time
        wide, narrow = (difference(f, inputs, tangents, one)[1] for one in (step, step / 2))
        off, noise = float("inf") if exact is None else _apart(exact, narrow), _apart(wide, narrow)
        if off <= tolerance:
            return jvp
        if noise < least:
            best, least, found = step, noise, off
    if exact is not None and not least <= tolerance:
        return _warned(jvp, "forward mode", f"it could not be checked, as differences are {least:.0%} apart at best")
    return _warned(partial(difference, step=best), BY_DIFFERENCE, why or f"forward mode is {found:.0%} off that")


def _warned(derivative: Derivative, name: str, why: str) -> Derivative:
    warnings.warn(f"The student's derivative is taken by {name}: {why}.", RuntimeWarning, stacklevel=3)
    return derivative


def _apart(a: Tensor, b: Tensor) -> float:
    """The norm of a − b relative to b's; nan where one is not finite."""
    tiny = torch.finfo(b.dtype).tiny
    return float((a - b).norm() / b.norm().clamp(min=tiny))


@contextmanager
def same_dropout(device: torch.device) -> Iterator[None]:
    """What runs inside draws the same random numbers as what comes after it."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type):
        yield


@contextmanager
def _apart_from_training(device: torch.device) -> Iterator[None]:
    with torch.no_grad(), torch.autocast(device.type, enabled=False), same_dropout(device):
        yield
