"""What a script in benchmarks/ leaves behind: out/benchmarks/NAME.json with machine, versions, command and rows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.bench.waterfall import command, surroundings
from fewstep.files import write_json

FOLDER = Path("out/benchmarks")


def save(name: str, rows: Sequence[Mapping[str, Any]], folder: Path | str = FOLDER) -> Path:
    """Write the rows of a benchmark beside what they were measured on; returns the file.

    Raises:
        MachineError: the disk is full or the place can't be written to.
    """
    path = Path(folder) / f"{name}.json"
    write_json(path, {"name": name, "command": command(), **surroundings(), "rows": [dict(row) for row in rows]})
    return path


def told(values: Sequence[float]) -> str:
    """The mean of figures of several seeds, and their range; empty for none."""
    if not values:
        return ""
    spread = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{spread}"
