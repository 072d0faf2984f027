"""Stored samples to train from: what they look like on disk, and batches of them.

A folder holds `paths.json` (the times, what made the samples, each shard's checksum) and shards in safetensors. It has
one of three contents: the teacher's *paths*, `states` of shape (samples, steps + 1, …), its x_t at the student's times
from noise to x0; *latents* of real data, `states` of shape (samples, 1, …), x0 alone; or *prompts*, no states at all,
for methods that sample from their own student. With each goes a tensor for each leaf of the conditions, with one row
where all samples of a shard share it. Batches are read row by row from the mapped files, so memory stays small whatever
the size of the set. One that is small beside the memory of a GPU is kept there whole: a GPU would wait for the rows.
`store` writes such folders.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fewstep.distill.data import conditions
from fewstep.distill.data.seeds import generator
from fewstep.errors import CheckpointError, InputError, bad_value
from fewstep.files import read_json, write_json

FORMAT = 2
INDEX = "paths.json"
STATES = "states"
CONDITION = "cond."
ROOM = 8  # a whole set may take one part in so many of a GPU's free memory
OPEN = 256  # shards that are mapped at once; a process may have about a thousand files, and other things map too

Content = Literal["prompts", "latents", "paths"]  # each also serves for those before it
CALLED: Mapping[Content, str] = {"prompts": "prompts only", "latents": "latents of data", "paths": "teacher paths"}


@dataclass(frozen=True)
class Shard:
    file: str
    sha256: str
    samples: int


@dataclass(frozen=True)
class Index:
    """What `paths.json` holds.

    Attributes:
        content: what the states are.
        times: of the states, falling, the last the schedule's end; only that one for latents and prompts.
        made_with: all that the samples depend on; only equal ones go on with a set. Its `prompts` is the number of
            samples wanted, its `shape` that of one state.
    """

    content: Content
    times: tuple[float, ...]
    made_with: dict[str, Any]
    shards: tuple[Shard, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.made_with["shape"])

    @property
    def wanted(self) -> int:
        """The number of samples of the whole set."""
        return int(self.made_with["prompts"])

    def write(self, folder: Path) -> None:
        write_json(folder / INDEX, {"format": FORMAT, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Index:
        """Raises InputError where the folder holds no samples, CheckpointError where its index is not readable."""
        if not (folder / INDEX).exists():
            raise InputError(f"There are no teacher paths, latents or prompts in {folder}: it has no {INDEX}.")
        try:
            value = read_json(folder / INDEX)
            if value["format"] != FORMAT:
                raise CheckpointError(bad_value("format", str(folder / INDEX), str(FORMAT), value["format"]))
            shards = tuple(Shard(**shard) for shard in value["shards"])
            index = cls(value["content"], tuple(value["times"]), value["made_with"], shards)
            _ = CALLED[index.content], index.shape, index.wanted  # they must be there
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"The index {folder / INDEX} is damaged ({error}): make it again.") from None
        return index


@dataclass(frozen=True)
class PathBatch:
    """Teacher paths. `states` (batch, steps + 1, …) float32: x_t at `times`, falling, the last of them x0.

    Latents of data are paths of their end alone; prompts have zeros in its place, whose shape is all that counts.
    """

    states: Tensor
    times: tuple[float, ...]
    cond: Any

    def at(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """The states and times at one place on each path: steps of shape (batch,) -> x_t (batch, …), t (batch,)."""
        rows = torch.arange(len(steps), device=steps.device)
        return self.states[rows, steps], torch.tensor(self.times, dtype=torch.float64, device=steps.device)[steps]


class PathSet:
    """A folder of samples, open for reading. A shard's checksum is checked when it is first used.

    `template` is a condition of the kind that was stored: what is not a row of a sample is taken from it. `steps` takes
    fewer of the stored times: a path of 4 steps holds those of 2 and of 1.

    Raises:
        InputError: there are no samples in the folder, or `steps` does not divide those of its paths.
        CheckpointError: the index, or later a shard, is damaged.
    """

    def __init__(self, folder: Path | str, template: Any = None, steps: int | None = None) -> None:
        self.folder, self.template = Path(folder), template
        self.index = Index.read(self.folder)
        stored = len(self.index.times) - 1
        if steps is not None:
            self.check_serves("paths", "A student of some steps")
            if steps < 1 or stored % steps:
                raise InputError(bad_value("steps", "the student", f"a divisor of the paths' {stored}", steps))
        self._stride = 1 if steps is None else stored // steps
        self._open: OrderedDict[int, Mapping[str, Tensor]] = OrderedDict()
        self._checked: set[int] = set()
        self._starts = [0]
        for shard in self.index.shards:
            self._starts.append(self._starts[-1] + shard.samples)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def times(self) -> tuple[float, ...]:
        return self.index.times[:: self._stride]

    @property
    def paired(self) -> bool:
        """Whether the samples 2i and 2i + 1 belong together, as their source said: each other's near misses."""
        return bool(self.index.made_with.get("pairs"))

    @property
    def fingerprint(self) -> str:
        """Tells sets apart that were made otherwise."""
        made = [self.index.content, self.times, self.index.made_with]
        return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]

    def check_serves(self, needed: Content, who: str) -> None:
        """Paths serve where latents are needed, and both where prompts are.

        Raises:
            InputError: the set holds less than `who` needs.
        """
        order = get_args(Content)
        if order.index(self.index.content) < order.index(needed):
            raise InputError(f"{who} needs {CALLED[needed]}, and {self.folder} holds {CALLED[self.index.content]}.")

    def batches(
        self, size: int, seed: int = 0, device: torch.device | str = "cpu", room: int | None = None
    ) -> Callable[[int], PathBatch]:
        """Step -> its batch of `size`: the set in a new random order each epoch, the same for the same step and seed.
        Of a set in pairs, pairs stay together.

        `room`: bytes of the device's memory in which the whole set is kept, if it fits; without it, 1/`ROOM` of what a
        GPU has free, and none elsewhere.

        Raises:
            InputError: size < 1, or no samples.
        """
        if size < 1 or not len(self):
            raise InputError(bad_value("batch", "training", f"at least 1, from {len(self)} samples", size))
        order = lru_cache(maxsize=2)(lambda epoch: self._order(generator(seed, "order", epoch)))
        whole = self._whole(torch.device(device), _room(torch.device(device)) if room is None else room)

        def batch(step: int) -> PathBatch:
            places = range(step * size, (step + 1) * size)
            samples = [int(order(place // len(self))[place % len(self)]) for place in places]
            if whole is None:
                return self.read(samples, device)
            rows = torch.tensor(samples, device=device)
            return self._batch(size, {name: value[rows] for name, value in whole.items()}, device)

        return batch

    def _order(self, draw: torch.Generator) -> Tensor:
        if not self.paired:
            return torch.randperm(len(self), generator=draw)
        firsts = 2 * torch.randperm(len(self) // 2, generator=draw)
        last = torch.arange(len(self) // 2 * 2, len(self))
        return torch.cat([torch.stack([firsts, firsts + 1], 1).flatten(), last])

    def read(self, samples: Sequence[int], device: torch.device | str = "cpu") -> PathBatch:
        """These samples, in this order."""
        places = [(bisect_right(self._starts, sample) - 1, sample) for sample in samples]
        read = [self._row(self._shard(shard), sample - self._starts[shard]) for shard, sample in places]
        tensors = {name: torch.stack([row[name] for row in read]).to(device) for name in read[0]}
        return self._batch(len(read), tensors, device)

    def _batch(self, samples: int, tensors: dict[str, Tensor], device: torch.device | str) -> PathBatch:
        states = self._zeros(samples, device) if STATES not in tensors else tensors.pop(STATES).float()
        rows = {name.removeprefix(CONDITION): value for name, value in tensors.items()}
        return PathBatch(states[:, :: self._stride], self.times, conditions.rebuild(self.template, rows))

    def _whole(self, device: torch.device, room: int) -> dict[str, Tensor] | None:
        """All samples by tensor, on the device; None where they do not fit into so many bytes."""
        first = self._shard(0)
        if len(self) * sum(value[0].nbytes for value in first.values()) > room:
            return None
        shards = [(self._shard(number), shard.samples) for number, shard in enumerate(self.index.shards)]
        return {
            name: torch.cat([tensors[name].to(device).expand(n, *first[name].shape[1:]) for tensors, n in shards])
            for name in first
        }

    def _zeros(self, samples: int, device: torch.device | str) -> Tensor:
        return torch.zeros((samples, len(self.index.times), *self.index.shape), device=device)

    @staticmethod
    def _row(tensors: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
        return {name: value[row] if len(value) > 1 else value[0] for name, value in tensors.items()}

    def _shard(self, number: int) -> Mapping[str, Tensor]:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        shard = self.index.shards[number]
        if number not in self._checked:
            check(self.folder / shard.file, shard.sha256)
            self._checked.add(number)
        self._open[number] = tensors = mapped(self.folder / shard.file)
        if len(self._open) > OPEN:
            self._open.popitem(last=False)
        return tensors


def _room(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] // ROOM if device.type == "cuda" else 0


def mapped(path: Path) -> dict[str, Tensor]:
    """The tensors of a shard, mapped from the file: only the rows that are used are read.

    Raises:
        CheckpointError: it can't be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"The shard {path} can't be read ({error}): make it again.") from None


def checksum(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path, sha256: str) -> None:
    """Raises CheckpointError where the file is missing or is not what was written."""
    try:
        found = checksum(path)
    except OSError as error:
        raise CheckpointError(f"The shard {path} can't be read ({error.strerror}): make it again.") from None
    if found != sha256:
        raise CheckpointError(f"The shard {path} is damaged (its checksum differs): make it again.")
