"""A quality budget in, a setting out: the fewest computed steps that keep it, tried on prompts that were not learned
from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import InputError

Samples = NDArray[np.floating]  # (n, …), values in [0, 1]
CEILING = 100.0  # dB: of samples that are the same
KEPT = 0.95  # of other prompts shall keep what was promised
LEARNED = 8  # prompts at most are learned from; all others check
LOOKS = 2  # settings below the one that was found: quality does not fall quite evenly


@dataclass(frozen=True)
class Trial:
    """One setting on held-out prompts: how many steps it computed, and each sample's PSNR to the full run, in dB."""

    computed: int
    psnr: tuple[float, ...]

    @property
    def kept(self) -> float:
        """What all samples keep, but for as many as may miss it."""
        return sorted(self.psnr)[may_miss(len(self.psnr))]


def may_miss(samples: int) -> int:
    """How many of so many held-out samples may miss what is promised to `KEPT` of all others.

    Of n samples the one with r below it is passed by (n − r) / (n + 1) of all others, on average (order statistics).
    Fewer than 19 samples can't promise so much: then none may.
    """
    return max(0, math.floor(samples - KEPT * (samples + 1) + 1e-9))


def fewest(total: int, budget: float, trial: Callable[[int], Trial]) -> tuple[Trial | None, list[Trial]]:
    """The fewest computed steps of `total` that keep `budget` dB, by bisection and a few looks below it; None where
    none do. Returns with it all that was tried."""
    tried: dict[int, Trial] = {}

    def keeps(computed: int) -> bool:
        if computed not in tried:
            tried[computed] = trial(computed)
        return tried[computed].kept >= budget

    low, high = 2, total - 1  # at least both ends; at least one step reused
    best: int | None = None
    while low <= high:
        middle = (low + high) // 2
        if keeps(middle):
            best, high = middle, middle - 1
        else:
            low = middle + 1
    if best is not None:
        computed = best - 1
        while computed >= max(2, best - LOOKS):
            best = computed if keeps(computed) else best
            computed -= 1
    return (None if best is None else tried[best]), list(tried.values())


def psnr_each(samples: Samples, reference: Samples) -> tuple[float, ...]:
    """PSNR of each sample, in dB, the peak being 1; `CEILING` at most."""
    squares = ((samples.astype(np.float64) - reference) ** 2).reshape(len(samples), -1).mean(1)
    return tuple(float(min(CEILING, -10 * np.log10(max(square, 1e-20)))) for square in squares)


def search(run: Callable[[int | None], Samples], total: int, budget: float) -> list[Trial]:
    """`fewest` on a pipeline; what was tried, the best last.

    `run(k)` makes the held-out samples with `k` of `total` steps computed, `run(None)` with all, without a cache.

    Raises:
        InputError: no setting that reuses a step keeps the budget; the message has the nearest that one does.
    """
    full = run(None)

    best, tried = fewest(total, budget, lambda computed: Trial(computed, psnr_each(run(computed), full)))
    if best is None:
        nearest = max((one.kept for one in tried), default=0.0)
        raise InputError(
            f"No cache keeps a psnr of {budget:g} dB in {total} steps here: the nearest is {nearest:.1f} dB, "
            f"with {total - 1} steps computed."
        )
    return [*(one for one in tried if one is not best), best]


def split(prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Prompts to learn from, every other one or fewer, and prompts to check on, all others; of one prompt both times
    that one."""
    apart = max(2, math.ceil(len(prompts) / LEARNED))
    checking = [prompt for number, prompt in enumerate(prompts) if number % apart]
    return list(prompts[::apart]), checking or list(prompts)
