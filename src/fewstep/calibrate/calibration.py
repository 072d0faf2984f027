"""A calibration: how everything that caches look at moved over the noise levels of full runs; JSON with a signature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.calibrate.curve import Curve, fit
from fewstep.calibrate.gram import onto
from fewstep.calibrate.signature import Signature
from fewstep.errors import InputError, bad_value
from fewstep.files import read_json, write_json

FORMAT = "fewstep calibration 2"
STRIDES = 4  # a step is compared with as many before it: what a run in fewer steps would see
PREDICTION = "scheduler"  # in the place of a denoiser's name: what reached the scheduler, guidance done


@dataclass(frozen=True)
class Trail:
    """One quantity over the steps of one run, in one branch of one denoiser.

    Attributes:
        what: `signal` (what the first block sees, modulated), `stack` (what all blocks added), `hidden` (what left
            them), `output` (what reached the scheduler; its last row is the noise that the run began with).
        run: which of the runs, from 0.
        sigmas: the noise level of each step, falling.
        gram: means of products of any two steps; the lower triangle, row by row.
    """

    what: str
    denoiser: str
    branch: int
    run: int
    sigmas: tuple[float, ...]
    gram: tuple[float, ...]

    @property
    def matrix(self) -> Tensor:
        """The whole Gram matrix, float64."""
        side = math.isqrt(2 * len(self.gram))
        lower = torch.zeros(side, side, dtype=torch.float64)
        rows, columns = torch.tril_indices(side, side)
        lower[rows, columns] = torch.tensor(self.gram, dtype=torch.float64)
        return lower + lower.tril(-1).T

    @classmethod
    def of(cls, what: str, denoiser: str, branch: int, run: int, sigmas: Sequence[float], matrix: Tensor) -> Trail:
        rows, columns = torch.tril_indices(*matrix.shape)
        return cls(what, denoiser, branch, run, tuple(sigmas), tuple(matrix[rows, columns].tolist()))

    def differences(self, stride: int) -> Tensor:
        """√ of the mean squared change over `stride` steps, (steps − stride,)."""
        g = self.matrix
        squares = g.diagonal()[stride:] + g.diagonal()[:-stride] - 2 * g.diagonal(stride)
        return squares.clamp(min=0).sqrt()

    @property
    def sizes(self) -> Tensor:
        """The root mean square at each step."""
        return self.matrix.diagonal().clamp(min=0).sqrt()


@dataclass(frozen=True)
class Gain:
    """How much larger an error at one noise level is at the end: a small one early can draw another picture."""

    sigma: float
    gain: float


@dataclass(frozen=True)
class Calibration:
    """What was seen in full runs. It holds for any number of steps: what it knows is kept by noise level."""

    signature: Signature
    trails: tuple[Trail, ...]
    gains: tuple[Gain, ...] = ()
    made_by: dict[str, Any] = field(default_factory=dict)

    def of(self, what: str, denoiser: str) -> list[Trail]:
        return [trail for trail in self.trails if (trail.what, trail.denoiser) == (what, denoiser)]

    def curve(self, denoiser: str) -> Curve | None:
        """Expected error of the stack's output by change of the signal, both relative, monotone (2411.19108).

        From any step to the next four, of every run and branch; None for a denoiser that was not seen.
        """
        pairs = [
            pair
            for signal in self.of("signal", denoiser)
            for pair in self._changes(signal, self._twin(signal, "stack"), self._twin(signal, "hidden"))
        ]
        return fit(*zip(*pairs, strict=True)) if pairs else None

    def ratios(self, denoiser: str, sigmas: Sequence[float]) -> list[float]:
        """‖residual‖ of the stack at each of these noise levels over that of the level before (2506.09045); 1 first.

        The mean over runs and branches.
        """
        sizes = [onto(trail.sigmas, sigmas) @ trail.sizes for trail in self.of("stack", denoiser)]
        mean = torch.stack(sizes).mean(0)
        return [1.0, *(mean[1:] / mean[:-1].clamp(min=1e-12)).tolist()]

    def output(self, sigmas: Sequence[float]) -> Tensor:
        """The Gram matrix of what reaches the scheduler at these noise levels, and of the noise (last), the mean over
        the runs: (steps + 1, steps + 1)."""
        matrices = []
        for trail in self.of("output", PREDICTION):
            weights = torch.zeros(len(sigmas) + 1, len(trail.sigmas) + 1, dtype=torch.float64)
            weights[:-1, :-1], weights[-1, -1] = onto(trail.sigmas, sigmas), 1.0
            matrices.append(weights @ trail.matrix @ weights.T)
        return torch.stack(matrices).mean(0)

    def gains_at(self, sigmas: Sequence[float]) -> Tensor:
        """The gains at these noise levels, between those that were measured on straight lines; 1 where none was.

        An earlier error has longer to grow, so it never counts less than a later one: a few prompts may have missed
        the one that it turns into another picture.
        """
        known = sorted((one.sigma, one.gain) for one in self.gains) or [(0.0, 1.0)]
        levels, gains = [sigma for sigma, _ in known], list(accumulate((gain for _, gain in known), max))
        return torch.from_numpy(np.interp(np.asarray(sigmas), levels, gains))

    def _twin(self, trail: Trail, what: str) -> Trail:
        place = (trail.branch, trail.run)
        return next(twin for twin in self.of(what, trail.denoiser) if (twin.branch, twin.run) == place)

    @staticmethod
    def _changes(signal: Trail, stack: Trail, hidden: Trail) -> list[tuple[float, float]]:
        found = []
        for stride in range(1, min(STRIDES, len(signal.sigmas) - 1) + 1):
            moved = signal.differences(stride) / signal.sizes[:-stride].clamp(min=1e-12)
            erred = stack.differences(stride) / hidden.sizes[stride:].clamp(min=1e-12)
            found += list(zip(moved.tolist(), erred.tolist(), strict=True))
        return found

    def save(self, path: Path | str) -> None:
        """Write as JSON.

        Raises:
            MachineError: the file can't be written; what was there stays.
        """
        write_json(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: Path | str) -> Calibration:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or not a calibration; the message says what is wrong.
        """
        value = read_json(path)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise InputError(f"{path} must be a calibration that fewstep saved: its 'format' is not {FORMAT!r}.")
        try:
            trails = tuple(
                Trail(**{**trail, "sigmas": tuple(trail["sigmas"]), "gram": tuple(trail["gram"])})
                for trail in value["trails"]
            )
            gains = tuple(Gain(**gain) for gain in value["gains"])
            loaded = cls(Signature(**value["signature"]), trails, gains, dict(value["made_by"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} must be a whole calibration: {error}.") from error
        loaded._check(path)
        return loaded

    def _check(self, path: Path | str) -> None:
        for trail in self.trails:
            side = len(trail.sigmas) + (trail.what == "output")
            wanted = f"{side * (side + 1) // 2} finite numbers"
            if len(trail.gram) != side * (side + 1) // 2 or not all(map(_finite, trail.gram)):
                raise InputError(bad_value("gram", f"a trail in {path}", wanted, f"{len(trail.gram)} values"))
            if not all(map(_finite, trail.sigmas)):
                raise InputError(bad_value("sigmas", f"a trail in {path}", "finite numbers", trail.sigmas))
        for gain in self.gains:
            if not (_finite(gain.sigma) and _finite(gain.gain) and gain.gain >= 0):
                raise InputError(bad_value("gain", f"a gain in {path}", "a number, at least 0", gain.gain))
        for part in fields(self.signature):
            if not isinstance(getattr(self.signature, part.name), str):
                raise InputError(
                    bad_value(part.name, f"the signature in {path}", "text", getattr(self.signature, part.name))
                )


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
