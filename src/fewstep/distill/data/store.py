"""Writing samples into a folder, whatever they are: shard by shard, resumable, damaged shards made again.

A shard is written whole and then named in the index, so a run that stops loses at most the one in hand. What a sample
is may depend on its number and on nothing else: then neither batches nor shards nor interruptions show in a set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from fewstep.distill.data.conditions import Rows
from fewstep.distill.data.samples import CALLED, CONDITION, INDEX, STATES, Index, Shard, check, checksum, mapped
from fewstep.errors import CheckpointError, InputError, bad_value
from fewstep.files import replacing
from fewstep.progress import bar, patience

Stored = Literal["float32", "float16"]
Make = Callable[[range], Mapping[str, Tensor]]  # some samples, by number -> their tensors, samples first


@dataclass(frozen=True)
class Sizes:
    """`batch`: samples made together. `shard`: samples a file. `stored`: dtype of floating-point numbers on disk.

    Raises:
        InputError: a value out of its range.
    """

    batch: int = 64
    shard: int = 512
    stored: Stored = "float32"

    def __post_init__(self) -> None:
        rules = {
            "batch": (self.batch >= 1, "at least 1"),
            "shard": (self.shard >= 1, "at least 1"),
            "stored": (self.stored in get_args(Stored), f"one of {', '.join(get_args(Stored))}"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(bad_value(name, "stored samples", rule, getattr(self, name)))


@torch.no_grad()
def fill(folder: Path, wanted: Index, make: Make, sizes: Sizes, *, show: bool = True) -> None:
    """Make what `folder` lacks of the wanted samples: shards that are damaged, then those that were not made yet.

    Ctrl-C finishes and keeps the shard in hand, then leaves.

    Raises:
        InputError: the folder holds samples that were made otherwise, or conditions differ in shape.
        MachineError: the disk is full.
    """
    filling = Filling.of(folder, wanted, sizes, show=show)
    title, done = CALLED[wanted.content], filling.there
    with patience() as user, bar(title, wanted.wanted, done, show=show) as progress:
        for number, samples in filling.todo:
            parts = []
            for part in batches(samples, sizes.batch):
                parts.append(as_stored(make(part), sizes.stored))
                done += len(part)
                progress(done, "")
            filling.keep(number, joined(parts))
            if user.over:
                raise KeyboardInterrupt


class Filling:
    """A folder that samples are written to, shard after shard, by whomever they are made.

    Attributes:
        todo: (number, samples) of the shards that are lacking: those that are damaged, then those not made yet.
        there: samples that were sound before.
    """

    def __init__(self, folder: Path, index: Index, todo: list[tuple[int, range]]) -> None:
        self.folder, self.todo = folder, todo
        self.there = index.wanted - sum(len(samples) for _, samples in todo)
        self._index, self._samples, self._early = index, dict(todo), dict[int, Shard]()
        self._sound = next((folder / s.file for i, s in enumerate(index.shards) if i not in self._samples), None)

    @classmethod
    def of(cls, folder: Path, wanted: Index, sizes: Sizes, *, show: bool = True) -> Filling:
        """Begin with a folder, or go on with it. Every shard that is there is read.

        Raises:
            InputError: it holds samples that were made otherwise.
        """
        index = _started(folder, wanted)
        return cls(folder, index, _todo(index, list(_faults(folder, index, show)), wanted.wanted, sizes.shard))

    def keep(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard. The index names it once all those before it are there.

        Raises:
            InputError: its conditions have another shape than those of a shard that is there.
            MachineError: the disk is full.
        """
        path = self.folder / f"shard-{number:05d}.safetensors"
        if self._sound is not None:
            _fits(tensors, mapped(self._sound))
        with replacing(path) as aside:
            save_file(dict(tensors), str(aside))
        self._sound, shards = path, list(self._index.shards)
        self._early[number] = Shard(path.name, checksum(path), len(self._samples[number]))
        for place in sorted(self._early):
            if place <= len(shards):
                shards[place : place + 1] = [self._early.pop(place)]
        self._index = replace(self._index, shards=tuple(shards))
        self._index.write(self.folder)


def batches(samples: range, size: int) -> list[range]:
    """Samples in their order, so many together."""
    return [range(low, min(low + size, samples.stop)) for low in range(samples.start, samples.stop, size)]


def verify(folder: Path | str, *, show: bool = True) -> list[str]:
    """What is wrong with a folder of samples, one sentence each; nothing where it is sound and whole.

    Every shard is read. `fill` with the same source makes the damaged shards and the lacking samples again.

    Raises:
        InputError: the folder holds no samples.
        CheckpointError: its index is not readable.
    """
    folder = Path(folder)
    index = Index.read(folder)
    found, there = list(_faults(folder, index, show).values()), sum(shard.samples for shard in index.shards)
    if there != index.wanted:
        found.append(f"{folder} holds {there} of {index.wanted} samples: go on with making them.")
    return found


def samples_of(rows: Rows, states: Tensor | None = None) -> dict[str, Tensor]:
    """A sample's tensors by the names that they are stored under: states (batch, steps + 1, …) and condition's rows."""
    named = {CONDITION + name: value for name, value in rows.items()}
    return named if states is None else {STATES: states, **named}


def digest(lines: Sequence[Any]) -> str:
    """Tells lists of texts, or of what can be written as text, apart."""
    return sha256("\n".join(str(line) for line in lines).encode()).hexdigest()


def _started(folder: Path, wanted: Index) -> Index:
    """The index of what is there, if it is of the same samples, or a new one."""
    if not (folder / INDEX).exists():
        wanted.write(folder)
        return wanted
    index = Index.read(folder)
    if index.content != wanted.content:
        raise InputError(
            f"{folder} holds {CALLED[index.content]}, and these are {CALLED[wanted.content]}: take another folder."
        )
    before = {**index.made_with, "times": list(index.times)}
    now = json.loads(json.dumps({**wanted.made_with, "times": wanted.times}))
    for name in dict.fromkeys([*before, *now]):
        if now.get(name) != before.get(name):
            raise InputError(
                f"{folder} holds {CALLED[index.content]} made with {name} = {before.get(name)!r}, and these have "
                f"{now.get(name)!r}: take the same to go on with them, or another folder."
            )
    return index


def _todo(index: Index, faulty: Sequence[int], total: int, size: int) -> list[tuple[int, range]]:
    """(number, samples) of the shards to make."""
    starts = [0]
    for shard in index.shards:
        starts.append(starts[-1] + shard.samples)
    again = [(number, range(starts[number], starts[number + 1])) for number in faulty]
    new = [range(start, min(start + size, total)) for start in range(starts[-1], total, size)]
    return [*again, *enumerate(new, len(index.shards))]


def _faults(folder: Path, index: Index, show: bool) -> dict[int, str]:
    """Shard number -> what is wrong with it, of those that are damaged."""
    if not index.shards:
        return {}
    found = {}
    with bar("checking shards", len(index.shards), show=show) as progress:
        for number, shard in enumerate(index.shards):
            try:
                _check(folder / shard.file, shard, index)
            except CheckpointError as error:
                found[number] = str(error)
            progress(number + 1, "")
    return found


def _check(path: Path, shard: Shard, index: Index) -> None:
    check(path, shard.sha256)
    tensors = mapped(path)
    lengths = {len(value) for value in tensors.values()} - {1}
    states = len(tensors[STATES]) if STATES in tensors else shard.samples
    if (index.content == "prompts") == (STATES in tensors) or lengths - {shard.samples} or states != shard.samples:
        raise CheckpointError(f"The shard {path} does not hold {shard.samples} samples: make it again.")


def as_stored(tensors: Mapping[str, Tensor], stored: Stored) -> dict[str, Tensor]:
    """On the CPU, and floating-point numbers in the dtype that they have on disk."""
    dtype = torch.float16 if stored == "float16" else torch.float32
    return {
        name: (value.to(dtype) if value.is_floating_point() else value).cpu().contiguous()
        for name, value in tensors.items()
    }


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The parts' tensors, each with one row where all are equal.

    Raises:
        InputError: conditions differ in shape.
    """
    whole = {}
    for part in parts[1:]:
        _fits(part, parts[0])
    for name in parts[0]:
        value = torch.cat([part[name] for part in parts])
        equal = name != STATES and bool((value == value[:1]).all())
        whole[name] = value[:1].clone() if equal else value
    return whole


def _fits(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    """Raises InputError where conditions of two batches have different shapes."""
    for name, value in tensors.items():
        shapes = {tuple(one.shape[1:]) for one in (value, others.get(name, value))}
        if len(shapes) > 1:
            raise InputError(
                f"The conditions' {name.removeprefix(CONDITION)} has other shapes in other batches "
                f"({' and '.join(map(str, sorted(shapes)))}): give the pipeline's call what pads prompts to one length."
            )
