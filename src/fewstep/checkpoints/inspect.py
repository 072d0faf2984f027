"""What a checkpoint is, told from its headers alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.checkpoints.formats import Source, open_checkpoint
from fewstep.checkpoints.model import CLASS
from fewstep.checkpoints.stored import Stored


@dataclass(frozen=True)
class Inspected:
    """Facts about a checkpoint.

    Attributes:
        format: a name in `FORMATS`.
        model: the diffusers class; None where a single file does not say it.
        schemes: the format's own word for a layer -> how many there are.
        with_input_scale: layers whose input has a calibrated scale.
        quantized_bytes: of quantized layers, with their scales.
        plain_bytes: of all else.
        precise: matrices that are not quantized, by their names in the file.
        facts: who made it, as the file says.
        warnings: what is allowed but odd, one sentence each.
    """

    format: str
    model: str | None
    schemes: dict[str, int]
    with_input_scale: int
    quantized_bytes: int
    plain_bytes: int
    precise: tuple[str, ...]
    facts: dict[str, Any]
    warnings: tuple[str, ...]


def inspect(path: str | Path, config: Source | None = None) -> Inspected:
    """What is at `path`; reads no numbers.

    Raises:
        CheckpointError: damaged, of no known format, or with scales too few or too many.
        InputError: nothing is there.
    """
    opened = open_checkpoint(path, config)
    stored, layers, plain = opened.stored, opened.parsed.layers, opened.parsed.plain
    return Inspected(
        format=opened.format.name,
        model=(opened.config or {}).get(CLASS),
        schemes=dict(Counter(layer.scheme for layer in layers.values())),
        with_input_scale=sum(any("input" in n or "act_per" in n for n in layer.names) for layer in layers.values()),
        quantized_bytes=_bytes(stored, [name for layer in layers.values() for name in layer.names]),
        plain_bytes=_bytes(stored, list(plain.values())),
        precise=tuple(
            sorted(
                name.removesuffix(".weight")
                for name, at in plain.items()
                if name.endswith(".weight") and stored.shape(at).dim() == 2
            )
        ),
        facts=dict(opened.parsed.facts),
        warnings=opened.parsed.warnings,
    )


def _bytes(stored: Stored, names: list[str]) -> int:
    return sum(stored.shape(name).nbytes for name in names)
