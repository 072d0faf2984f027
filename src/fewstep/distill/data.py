"""Stored teacher paths: what they look like on disk, and batches of them for training.

A folder holds `paths.json` (the times, what made the paths, each shard's checksum) and shards in safetensors: `states`
of shape (samples, steps + 1, …), the teacher's x_t at the student's times from noise to x0, and a tensor for each leaf
of the conditions, with one row where all samples share it. Batches are read row by row from the mapped files, so memory
stays small whatever the size of the set.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fewstep.distill import conditions
from fewstep.distill.seeds import generator
from fewstep.errors import CheckpointError, InputError, bad_value
from fewstep.files import read_json, write_json

FORMAT = 1
INDEX = "paths.json"
STATES = "states"
CONDITION = "cond."


@dataclass(frozen=True)
class Shard:
    file: str
    sha256: str
    samples: int


@dataclass(frozen=True)
class Index:
    """What `paths.json` holds. `made_with` is all that the paths depend on; only equal ones go on with a set."""

    times: tuple[float, ...]
    made_with: dict[str, Any]
    shards: tuple[Shard, ...] = ()

    def write(self, folder: Path) -> None:
        write_json(folder / INDEX, {"format": FORMAT, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Index:
        """Raises InputError where the folder holds no paths, CheckpointError where its index is not readable."""
        if not (folder / INDEX).exists():
            raise InputError(f"There are no teacher paths in {folder}: it has no {INDEX}.")
        try:
            value = read_json(folder / INDEX)
            shards = tuple(Shard(**shard) for shard in value["shards"])
            known = value["format"] == FORMAT
            index = cls(tuple(value["times"]), value["made_with"], shards)
        except (InputError, KeyError, TypeError) as error:
            raise CheckpointError(f"The index {folder / INDEX} is damaged ({error}): make the paths again.") from None
        if not known:
            raise CheckpointError(bad_value("format", str(folder / INDEX), str(FORMAT), value["format"]))
        return index


@dataclass(frozen=True)
class PathBatch:
    """Teacher paths. `states` (batch, steps + 1, …) float32: x_t at `times`, falling, the last of them x0."""

    states: Tensor
    times: tuple[float, ...]
    cond: Any

    def at(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """The states and times at one place on each path: steps of shape (batch,) -> x_t (batch, …), t (batch,)."""
        rows = torch.arange(len(steps), device=steps.device)
        return self.states[rows, steps], torch.tensor(self.times, dtype=torch.float64, device=steps.device)[steps]


class PathSet:
    """A folder of teacher paths, open for reading. A shard's checksum is checked when it is first used.

    `template` is a condition of the kind that was stored: what is not a row of a sample is taken from it. `steps` takes
    fewer of the stored times: a path of 4 steps holds those of 2 and of 1.

    Raises:
        InputError: there are no paths in the folder, or `steps` does not divide theirs.
        CheckpointError: the index, or later a shard, is damaged.
    """

    def __init__(self, folder: Path | str, template: Any = None, steps: int | None = None) -> None:
        self.folder, self.template = Path(folder), template
        self.index = Index.read(self.folder)
        stored = len(self.index.times) - 1
        if steps is not None and (steps < 1 or stored % steps):
            raise InputError(bad_value("steps", "the student", f"a divisor of the paths' {stored}", steps))
        self._stride = stored // (steps or stored)
        self._open: dict[int, Mapping[str, Tensor]] = {}
        self._starts = [0]
        for shard in self.index.shards:
            self._starts.append(self._starts[-1] + shard.samples)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def times(self) -> tuple[float, ...]:
        return self.index.times[:: self._stride]

    @property
    def fingerprint(self) -> str:
        """Tells sets apart that were made otherwise."""
        return hashlib.sha256(json.dumps([self.times, self.index.made_with], sort_keys=True).encode()).hexdigest()[:16]

    def batches(self, size: int, seed: int = 0, device: torch.device | str = "cpu") -> Callable[[int], PathBatch]:
        """Step -> its batch of `size`: the set in a new random order each epoch, the same for the same step and seed.

        Raises:
            InputError: size < 1, or no paths.
        """
        if size < 1 or not len(self):
            raise InputError(bad_value("batch", "training", f"at least 1, from {len(self)} paths", size))
        order = lru_cache(maxsize=2)(lambda epoch: torch.randperm(len(self), generator=generator(seed, "order", epoch)))

        def batch(step: int) -> PathBatch:
            places = range(step * size, (step + 1) * size)
            return self.read([int(order(place // len(self))[place % len(self)]) for place in places], device)

        return batch

    def read(self, samples: Sequence[int], device: torch.device | str = "cpu") -> PathBatch:
        """These paths, in this order."""
        places = [(bisect_right(self._starts, sample) - 1, sample) for sample in samples]
        read = [self._row(self._shard(shard), sample - self._starts[shard]) for shard, sample in places]
        tensors = {name: torch.stack([row[name] for row in read]).to(device) for name in read[0]}
        states = tensors.pop(STATES)[:, :: self._stride].float()
        rows = {name.removeprefix(CONDITION): value for name, value in tensors.items()}
        return PathBatch(states, self.times, conditions.rebuild(self.template, rows))

    @staticmethod
    def _row(tensors: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
        return {name: value[row] if len(value) > 1 else value[0] for name, value in tensors.items()}

    def _shard(self, number: int) -> Mapping[str, Tensor]:
        """The shard's tensors, mapped from the file: only the rows that are used are read."""
        if number not in self._open:
            shard = self.index.shards[number]
            path = self.folder / shard.file
            check(path, shard.sha256)
            try:
                with safe_open(path, framework="pt") as file:
                    self._open[number] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            except SafetensorError as error:
                raise CheckpointError(f"The shard {path} can't be read ({error}): make the paths again.") from None
        return self._open[number]


def checksum(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path, sha256: str) -> None:
    """Raises CheckpointError where the file is missing or is not what was written."""
    try:
        found = checksum(path)
    except OSError as error:
        raise CheckpointError(f"The shard {path} can't be read ({error.strerror}): make the paths again.") from None
    if found != sha256:
        raise CheckpointError(
            f"The shard {path} is damaged (its checksum differs): delete it and make the paths again."
        )
