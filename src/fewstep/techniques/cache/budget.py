"""A quality budget in, a setting out: the fewest computed steps that keep it, tried on prompts that were not learned
from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import InputError

Samples = NDArray[np.floating]  # (n, …), values in [0, 1]
CEILING = 100.0  # dB: of samples that are the same


@dataclass(frozen=True)
class Trial:
    """One setting on held-out prompts: how many steps it computed, and each sample's PSNR to the full run, in dB."""

    computed: int
    psnr: tuple[float, ...]

    @property
    def worst(self) -> float:
        return min(self.psnr)


def fewest(total: int, budget: float, trial: Callable[[int], Trial]) -> tuple[Trial | None, list[Trial]]:
    """The fewest computed steps of `total` whose worst sample keeps `budget` dB, by bisection; None where none does.

    Returns with it all that was tried. More computed steps are held to be no worse.
    """
    low, high, tried = 2, total - 1, list[Trial]()  # at least both ends; at least one step reused
    best: Trial | None = None
    while low <= high:
        middle = (low + high) // 2
        tried.append(trial(middle))
        if tried[-1].worst >= budget:
            best, high = tried[-1], middle - 1
        else:
            low = middle + 1
    return best, tried


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
        nearest = max((one.worst for one in tried), default=0.0)
        raise InputError(
            f"No cache keeps a psnr of {budget:g} dB in {total} steps here: the nearest is {nearest:.1f} dB, "
            f"with {total - 1} steps computed."
        )
    return [*(one for one in tried if one is not best), best]


def split(prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Prompts to learn from and prompts to check on: every other one; of one prompt both times that one."""
    return list(prompts[::2]), list(prompts[1::2] or prompts)
