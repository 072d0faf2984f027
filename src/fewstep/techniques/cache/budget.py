"""A quality budget in, a setting out: the fewest computed steps that keep it, tried on prompts that were not learned
from."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import InputError

Samples = NDArray[np.floating]  # (n, …), values in [0, 1]
CEILING = 100.0  # dB: of samples that are the same
KEPT = 0.95  # of other prompts shall keep what was promised
LEARNED = 8  # prompts at most are learned from; all others check
START = 8  # the search begins with one step in so many computed
GROWTH = 1.1  # and with so many times as many after each that failed


@dataclass(frozen=True)
class Trial:
    """One setting on held-out prompts: how many steps it computed, and the PSNR of each sample to its full run, in dB:
    of all `samples`, or of the first of them, when more than may had missed what was asked for."""

    computed: int
    psnr: tuple[float, ...]
    samples: int

    @property
    def kept(self) -> float:
        """What all samples keep, but for as many as may miss it."""
        return sorted(self.psnr)[may_miss(self.samples)]


def may_miss(samples: int) -> int:
    """How many of so many held-out samples may miss what is promised to `KEPT` of all others.

    Of n samples the one with r below it is passed by (n − r) / (n + 1) of all others, on average (order statistics).
    Fewer than 19 samples can't promise so much: then none may.
    """
    return max(0, math.floor(samples - KEPT * (samples + 1) + 1e-9))


def fewest(total: int, budget: float, trial: Callable[[int], Trial]) -> tuple[Trial | None, list[Trial]]:
    """About the fewest computed steps of `total` that keep `budget` dB, at most `GROWTH` times as many; None where none
    do. Returns with it all that was tried.

    From below: quality does not rise evenly with the steps, so that bisection could miss the fewest by far, and a trial
    that fails is told by its first samples.
    """
    tried: list[Trial] = []

    def keeps(computed: int) -> bool:
        tried.append(trial(computed))
        return tried[-1].kept >= budget

    computed = min(max(2, total // START), total - 1)  # at least both ends; at least one step reused
    if computed < 2:
        return None, tried
    if keeps(computed):
        best = tried[-1]
        while computed > 2 and keeps(computed := computed - 1):
            best = tried[-1]
        return best, tried
    while computed < total - 1:
        computed = min(total - 1, max(computed + 1, round(computed * GROWTH)))
        if keeps(computed):
            return tried[-1], tried
    return None, tried


def psnr_each(samples: Samples, reference: Samples) -> tuple[float, ...]:
    """PSNR of each sample, in dB, the peak being 1; `CEILING` at most."""
    squares = ((samples.astype(np.float64) - reference) ** 2).reshape(len(samples), -1).mean(1)
    return tuple(float(min(CEILING, -10 * np.log10(max(square, 1e-20)))) for square in squares)


def search(run: Callable[[int | None], Generator[Samples]], total: int, budget: float) -> list[Trial]:
    """`fewest` on a pipeline; what was tried, the best last.

    `run(k)` makes the held-out samples with `k` of `total` steps computed, a part of them at a time, `run(None)` with
    all, without a cache.

    Raises:
        InputError: no setting that reuses a step keeps the budget; the message has the nearest that one does.
    """
    full = list(run(None))
    samples = sum(map(len, full))

    def trial(computed: int) -> Trial:
        found: list[float] = []
        with closing(run(computed)) as parts:
            for part, reference in zip(parts, full, strict=False):
                found += psnr_each(part, reference)
                if sum(psnr < budget for psnr in found) > may_miss(samples):
                    break
        return Trial(computed, tuple(found), samples)

    best, tried = fewest(total, budget, trial)
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
