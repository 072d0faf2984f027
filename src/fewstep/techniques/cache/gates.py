"""When to reuse: each gate foretells what error reusing this step would add; the engine lets it add up to a threshold.

A gate is a function of the visit, the memory of its branch, and what a calibration knows. To add one, write it and list
it in `GATES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.calibrate.curve import relative_change
from fewstep.calibrate.signal import change
from fewstep.calibrate.stack import WHOLE, Kept, Visit
from fewstep.models.streams import SCOPES


@dataclass
class Memory:
    """What one guidance branch of one request keeps.

    Attributes:
        steps, sigmas, kept: of the last computed steps, as many as the predictor takes.
        added: the error that has added up since the last computed step.
        run: steps reused since then.
        notes: the gate's own.
    """

    steps: list[int] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    added: float = 0.0
    run: int = 0
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Known:
    """What a calibration says about one denoiser at the noise levels of this request; nothing where there is none.

    `computed` are the steps of a plan, `error` what it is expected to leave in the latents; `weights` are those of a
    fitted forecast for each reused step, with the computed steps that they go with.
    """

    curve: Callable[[float], float] | None = None
    ratios: Sequence[float] = ()
    computed: frozenset[int] | None = None
    error: float | None = None
    weights: Mapping[int, tuple[tuple[int, ...], Sequence[float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Gate:
    """A gate and what it takes.

    Attributes:
        foretell: the error of reusing this step; 0 nothing, inf unknown.
        scopes: those in which what it looks at is there.
        looks: it looks at tensors, of which each rank of a group may hold a part.
        signal: it looks at what the first block sees.
        calibrated: it needs a calibration.
        adds_up: the errors of a run of reused steps add up; else each counts alone.
        front: blocks that must run before it can tell.
    """

    foretell: Callable[[Visit, Memory, Known], float]
    scopes: tuple[str, ...] = SCOPES
    looks: bool = False
    signal: bool = False
    calibrated: bool = False
    adds_up: bool = True
    front: int = 0


def never(visit: Visit, memory: Memory, known: Known) -> float:
    """Compute everything: what a cache costs that never reuses."""
    return math.inf


def always(visit: Visit, memory: Memory, known: Known) -> float:
    """Reuse as long as the engine's own rules allow: the ends, the warm-up, the longest run."""
    return 0.0


def schedule(visit: Visit, memory: Memory, known: Known) -> float:
    """The steps of a plan, and no others, are computed."""
    return math.inf if known.computed is None or visit.step.index in known.computed else 0.0


def teacache(visit: Visit, memory: Memory, known: Known) -> float:
    """The change of the first block's modulated input since the last step, put through a fitted curve
    (2411.19108)."""
    assert visit.signal is not None
    before, memory.notes["signal"] = memory.notes.get("signal"), visit.signal
    if before is None or known.curve is None:
        return math.inf
    return known.curve(change(visit.signal, before))


def first_block(visit: Visit, memory: Memory, known: Known) -> float:
    """How much what the first blocks add has changed since the last computed step."""
    before = memory.notes.get("head when computed")
    if before is None or visit.head is None:
        return math.inf
    return relative_change(visit.head, before)


def magcache(visit: Visit, memory: Memory, known: Known) -> float:
    """How far the residual's size, by its ratios in a calibration, has moved since the last computed step
    (2506.09045)."""
    if not known.ratios:
        return math.inf
    product = 1.0 if memory.run == 0 else float(memory.notes["product"])
    memory.notes["product"] = product * known.ratios[visit.step.index]
    return abs(1 - float(memory.notes["product"]))


def easycache(visit: Visit, memory: Memory, known: Known) -> float:
    """The change of the input since the last step, times the rate at which the output followed it when last seen
    (2507.02860)."""
    assert visit.x is not None
    notes = memory.notes
    before, notes["x"] = notes.get("x"), visit.x
    if before is None or "rate" not in notes:
        return math.inf
    return float(notes["rate"]) * relative_change(visit.x, before)


def easycache_learns(visit: Visit, memory: Memory) -> None:
    """The rate, at a computed step: relative change of the output over that of the input, since the step computed
    before it."""
    assert visit.x is not None
    notes, output = memory.notes, visit.residuals[WHOLE]["hidden"]
    if "computed x" in notes and notes["computed x"].shape == visit.x.shape:
        moved = relative_change(visit.x, notes["computed x"])
        if moved > 0:
            notes["rate"] = relative_change(output, notes["computed output"]) / moved
    notes["computed x"], notes["computed output"] = visit.x, output


def seacache(visit: Visit, memory: Memory, known: Known) -> float:
    """The change of the latents since the last step, after the Wiener filter of their noise level: what the model can
    tell from the noise. Latents on a grid, (batch, channels, …), in two or three dimensions."""
    if visit.x is None or visit.x.ndim < 4:
        return math.inf
    seen = wiener(visit.x, visit.step.sigma)
    before, memory.notes["seen"] = memory.notes.get("seen"), seen
    return math.inf if before is None else relative_change(seen, before)


def wiener(x: Tensor, sigma: float, falloff: float = 2.0) -> Tensor:
    """The gain a·S / (a²·S + b²), a = 1 − σ, b = σ, with the spectrum S = f^−falloff of natural pictures
    (2602.18993)."""
    sizes = x.shape[2:]
    squares = [torch.fft.fftfreq(n, device=x.device).square() for n in sizes]
    frequency = sum(
        square.reshape([-1 if k == axis else 1 for k in range(len(sizes))]) for axis, square in enumerate(squares)
    )
    spectrum = torch.as_tensor(frequency).clamp(min=1 / max(sizes) ** 2) ** (-falloff / 2)
    a, b = max(1 - sigma, 1e-3), sigma
    gain = a * spectrum / (a * a * spectrum + b * b)
    axes = tuple(range(2, x.ndim))
    filtered: Tensor = torch.fft.ifftn(torch.fft.fftn(x.float(), dim=axes) * gain, dim=axes).real
    return filtered


GATES: Mapping[str, Gate] = {
    "never": Gate(never),
    "always": Gate(always),
    "schedule": Gate(schedule, ("output", "blocks"), calibrated=True),
    "teacache": Gate(teacache, ("blocks",), looks=True, signal=True, calibrated=True),
    "first_block": Gate(first_block, ("blocks",), looks=True, adds_up=False, front=1),
    "magcache": Gate(magcache, ("output", "blocks"), calibrated=True),
    "easycache": Gate(easycache, ("output",), looks=True),
    "seacache": Gate(seacache, looks=True),
}
