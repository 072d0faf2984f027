"""Which layers bear few bits: what each one alone does to the denoiser's output when it is quantized, and a budget.

Every layer is quantized by itself and recorded calls of the denoiser are made again. Errors of different layers hardly
know each other, so that their squares add; how far that is from true on this model is measured too, once, with all
layers quantized together, and scales the sum.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from fewstep.calibrate.recorded import Call
from fewstep.calibrate.signature import Signature
from fewstep.errors import InputError, bad_value
from fewstep.files import read_json, write_json
from fewstep.models.model import Model

FORMAT = "fewstep sensitivity 1"
UNITS = {"%": 0.01, "KB": 1e3, "MB": 1e6, "GB": 1e9}
BUDGET = "a relative error above 0, a share of the denoisers' size like '60%', or a size like '6.5GB'"


@dataclass(frozen=True)
class Candidate:
    """A layer that could be quantized: what stands in its place then, and the bytes that it saves."""

    denoiser: str
    path: str
    quantized: nn.Module
    saved: int

    @property
    def name(self) -> str:
        return f"{self.denoiser}.{self.path}"


@dataclass(frozen=True)
class Effect:
    """What quantizing one layer alone does.

    Attributes:
        layer: its name, that of the denoiser first.
        error: ‖change of the denoiser's output‖ / ‖output‖, the root of the mean square over the recorded calls.
        saved: bytes; below 0 where the layer grows.
    """

    layer: str
    error: float
    saved: int

    @property
    def denoiser(self) -> str:
        return self.layer.partition(".")[0]


@dataclass(frozen=True)
class Sensitivity:
    """The effects of all layers of a model under one scheme; JSON with a signature.

    Attributes:
        scheme: what the layers were quantized with, as text.
        together: denoiser -> the error with all its layers quantized.
    """

    signature: Signature
    scheme: str
    effects: tuple[Effect, ...]
    together: Mapping[str, float]
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def differences(self, signature: Signature, scheme: str) -> list[str]:
        """Why this does not hold for a model of `signature` under `scheme`. Guidance and size may differ."""
        same_call = replace(signature, guidance=self.signature.guidance, size=self.signature.size)
        other = [f"scheme ({scheme} instead of {self.scheme})"] if scheme != self.scheme else []
        return [*same_call.differences(self.signature), *other]

    def save(self, path: Path | str) -> None:
        """Write as JSON.

        Raises:
            MachineError: the file can't be written; what was there stays.
        """
        write_json(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: Path | str) -> Sensitivity:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or not a whole one.
        """
        value = read_json(path)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise InputError(f"{path} must be a sensitivity that fewstep saved: its 'format' is not {FORMAT!r}.")
        try:
            effects = tuple(Effect(str(e["layer"]), float(e["error"]), int(e["saved"])) for e in value["effects"])
            together = {str(name): float(error) for name, error in value["together"].items()}
            return cls(Signature(**value["signature"]), str(value["scheme"]), effects, together, value["made_by"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} must be a whole sensitivity: {error}.") from error


def measure(
    model: Model, candidates: Sequence[Candidate], calls: Sequence[Call]
) -> tuple[tuple[Effect, ...], dict[str, float]]:
    """The effect of each candidate alone, and of all together by denoiser. The model is left as it was.

    Raises:
        InputError: no call of a denoiser was recorded whose layers are to be measured.
    """
    own = {name: [call for call in calls if call.denoiser == name] for name in model.denoisers}
    effects = []
    for candidate in candidates:
        if not own[candidate.denoiser]:
            raise InputError(
                f"The calibration run never called the {candidate.denoiser}: its layers can't be measured."
            )
        with swapped(model, [candidate]):
            error = error_of(model, own[candidate.denoiser])
        effects.append(Effect(candidate.name, error, candidate.saved))
    together = {}
    for name in dict.fromkeys(candidate.denoiser for candidate in candidates):
        with swapped(model, [candidate for candidate in candidates if candidate.denoiser == name]):
            together[name] = error_of(model, own[name])
    return tuple(effects), together


def error_of(model: Model, calls: Sequence[Call]) -> float:
    """How far the denoisers' outputs are from the recorded ones: the root of the mean square of ‖change‖ / ‖output‖."""
    squares = []
    for call in calls:
        change = (call.again(model.denoisers[call.denoiser]).double() - call.output.double()).norm()
        squares.append(float(change / call.output.double().norm()) ** 2)
    return math.sqrt(sum(squares) / len(squares))


@contextmanager
def swapped(model: Model, candidates: Iterable[Candidate]) -> Iterator[None]:
    """The candidates' quantized layers in their places inside the block."""
    places = [(model.denoisers[c.denoiser], c.path, c.quantized) for c in candidates]
    precise = [root.get_submodule(path) for root, path, _ in places]
    try:
        for root, path, module in places:
            root.set_submodule(path, module)
        yield
    finally:
        for (root, path, _), module in zip(places, precise, strict=True):
            root.set_submodule(path, module)


# ---------------------------------------------------------------------------------------------------------------------
# The budget


@dataclass(frozen=True)
class Budget:
    """What may be lost or used: one of a relative error of the output, a share of the size, or bytes."""

    error: float | None = None
    share: float | None = None
    bytes: float | None = None

    @classmethod
    def parse(cls, given: object) -> Budget | None:
        """0.02 is an error, "60%" a share of the denoisers' bytes, "6.5GB" a size; None for anything else."""
        if isinstance(given, int | float) and not isinstance(given, bool) and 0 < given < math.inf:
            return cls(error=float(given))
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|[KMG]B)", given) if isinstance(given, str) else None
        if found is None or float(found[1]) == 0:
            return None
        number = float(found[1]) * UNITS[found[2]]
        return cls(share=number) if found[2] == "%" else cls(bytes=number)


@dataclass(frozen=True)
class Choice:
    """What the budget decided on one layer, and why."""

    layer: str
    quantized: bool
    error: float
    saved: int
    why: str


def choose(sensitivity: Sensitivity, budget: Budget, size: int, hinted: Callable[[str], bool]) -> tuple[Choice, ...]:
    """Which layers are quantized: those with the least squared error for each byte saved, as many as the budget lets.

    Args:
        size: bytes of the denoisers before.
        hinted: whether a layer's family would keep it precise; of two equal layers it comes last.

    Raises:
        InputError: the size can't be reached with all layers quantized, or the error with none.
    """
    order = sorted(sensitivity.effects, key=lambda e: (e.error**2 / max(e.saved, 1), hinted(e.layer)))
    worth = [effect for effect in order if effect.saved > 0]
    if budget.error is not None:
        taken = _within_error(sensitivity, worth, budget.error)
    else:
        taken = _down_to(worth, size, budget.bytes if budget.bytes is not None else size * (budget.share or 0.0))
    return tuple(_choice(effect, taken, budget) for effect in sensitivity.effects)


def expected_error(sensitivity: Sensitivity, layers: Iterable[str]) -> dict[str, float]:
    """Denoiser -> the error to expect with these layers quantized."""
    chosen, expected = set(layers), {}
    for name, together in sensitivity.together.items():
        whole = _squares(sensitivity, name, None)
        expected[name] = together * math.sqrt(_squares(sensitivity, name, chosen) / whole) if whole else 0.0
    return expected


def _squares(sensitivity: Sensitivity, denoiser: str, layers: set[str] | None) -> float:
    own = [e for e in sensitivity.effects if e.denoiser == denoiser and (layers is None or e.layer in layers)]
    return sum(effect.error**2 for effect in own)


def _within_error(sensitivity: Sensitivity, worth: list[Effect], most: float) -> set[str]:
    """The first layers in order that fit, each denoiser by itself; one that does not fit is passed over."""
    taken: set[str] = set()
    for effect in worth:
        if expected_error(sensitivity, {*taken, effect.layer})[effect.denoiser] <= most:
            taken.add(effect.layer)
    return taken


def _down_to(worth: list[Effect], size: int, target: float) -> set[str]:
    taken: set[str] = set()
    for effect in worth:
        if size <= target:
            break
        taken.add(effect.layer)
        size -= effect.saved
    if size > target:
        raise InputError(
            bad_value("budget", "Quantize", f"at least {size / 1e6:.3g}MB, with every layer quantized", target)
        )
    return taken


def _choice(effect: Effect, taken: set[str], budget: Budget) -> Choice:
    quantized = effect.layer in taken
    if quantized:
        why = f"changes the output by {effect.error:.2e} alone, which the budget allows"
    elif effect.saved <= 0:
        why = "would not be smaller"
    elif budget.error is not None:
        why = f"changes the output by {effect.error:.2e} alone, which is beyond the budget"
    else:
        why = "the size is reached without it"
    return Choice(effect.layer, quantized, effect.error, effect.saved, why)
