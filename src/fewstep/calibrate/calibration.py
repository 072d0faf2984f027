"""A calibration: how much the blocks' work changed between noise levels, on one model; JSON with a signature."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fewstep.calibrate.curve import Curve, fit
from fewstep.calibrate.signature import Signature
from fewstep.errors import InputError, bad_value
from fewstep.files import read_json, write_json

FORMAT = "fewstep calibration 1"


@dataclass(frozen=True)
class Change:
    """What changed in one branch of one denoiser from noise level `sigma_from` to a lower one.

    `signal` is the relative change of the first block's modulated input; `error` the relative error of the stack's
    output if the residuals of `sigma_from` are used at `sigma_to`. Both ≥ 0.
    """

    denoiser: str
    branch: int
    sigma_from: float
    sigma_to: float
    signal: float
    error: float


@dataclass(frozen=True)
class Calibration:
    """The changes seen in full runs. It holds for any number of steps: what it knows is kept by noise level."""

    signature: Signature
    changes: tuple[Change, ...]
    made_by: dict[str, Any] = field(default_factory=dict)

    def curve(self, denoiser: str) -> Curve | None:
        """Expected error by change of the signal, monotone; None for a denoiser that was never seen to change."""
        seen = [change for change in self.changes if change.denoiser == denoiser]
        return fit([change.signal for change in seen], [change.error for change in seen]) if seen else None

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
            changes = tuple(Change(**change) for change in value["changes"])
            loaded = cls(Signature(**value["signature"]), changes, dict(value["made_by"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} must be a whole calibration: {error}.") from error
        loaded._check(path)
        return loaded

    def _check(self, path: Path | str) -> None:
        for change in self.changes:
            for name in ("signal", "error"):
                number = getattr(change, name)
                if not isinstance(number, int | float) or not 0 <= number < float("inf"):
                    raise InputError(bad_value(name, f"a change in {path}", "a number, at least 0", number))
        for part in fields(self.signature):
            if not isinstance(getattr(self.signature, part.name), str):
                raise InputError(
                    bad_value(part.name, f"the signature in {path}", "text", getattr(self.signature, part.name))
                )
