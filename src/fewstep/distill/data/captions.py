"""Where pictures and videos with captions come from: a folder, a saved Hugging Face data set, or one of the hub.

A folder has a `NAME.txt` beside each file, or one `metadata.jsonl` or `metadata.csv` with the columns `file_name` and
`text` (the "imagefolder" form of Hugging Face); it is searched with all that is below it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from fewstep.distill.data.pictures import PICTURES, VIDEOS, Media, extra
from fewstep.distill.data.store import digest
from fewstep.errors import InputError, bad_value
from fewstep.models.load import HUB_ID

METADATA = ("metadata.jsonl", "metadata.csv")
FILE_NAME = "file_name"
TEXT = "text"
SAVED = ("dataset_info.json", "dataset_dict.json")  # what `datasets` writes beside a saved data set


@dataclass(frozen=True)
class Sample:
    """A picture or video, its caption, and what messages call it."""

    media: Media
    caption: str
    name: str


class Source(Protocol):
    """Samples by number."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What tells this data from other, as JSON."""
        ...

    @property
    def early(self) -> int:
        """How many of its samples can be looked at before any work on them."""
        ...

    def __len__(self) -> int: ...

    def read(self, samples: range) -> Iterator[Sample]:
        """These samples, one at a time; cheapest in rising order."""
        ...


@dataclass(frozen=True)
class First:
    """The first so many samples of another source, or all of fewer."""

    source: Source
    samples: int

    @property
    def facts(self) -> Mapping[str, Any]:
        return {**self.source.facts, "first": len(self)}

    @property
    def early(self) -> int:
        return min(self.source.early, len(self))

    def __len__(self) -> int:
        return min(self.samples, len(self.source))

    def read(self, samples: range) -> Iterator[Sample]:
        return self.source.read(samples)


@dataclass(frozen=True)
class Folder:
    """Files with captions: see `folder`."""

    path: Path
    files: tuple[tuple[Path, str], ...]

    @property
    def facts(self) -> Mapping[str, Any]:
        sizes = [(file.relative_to(self.path).as_posix(), file.stat().st_size) for file, _ in self.files]
        return {"files_sha256": digest(sizes), "captions_sha256": digest([caption for _, caption in self.files])}

    @property
    def early(self) -> int:
        return len(self)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, samples: range) -> Iterator[Sample]:
        for i in samples:
            file, caption = self.files[i]
            yield Sample(file, caption, str(file))


class Table:
    """Rows with a column of pictures and one of captions: a list of mappings, or a data set of `datasets`.

    Rows without numbers (a streamed data set) are read in order, so `samples` says how many there are to be.

    Raises:
        InputError: no rows, fewer than `samples`, or a stream without a number of them.
    """

    def __init__(
        self, rows: Any, name: str, *, image: str = "image", caption: str = TEXT, samples: int | None = None
    ) -> None:
        self.rows, self.name, self.image, self.caption = rows, name, image, caption
        self._numbered = hasattr(rows, "__len__") and hasattr(rows, "__getitem__")
        there = len(rows) if self._numbered else samples
        if there is None:
            raise InputError(f"{name} is streamed, which does not tell its length: say how many 'samples' to take.")
        self._samples = there if samples is None else samples
        if not 1 <= self._samples <= there:
            raise InputError(bad_value("samples", name, f"from 1 to the {there} that it holds", samples))
        self._stream, self._at = iter(() if self._numbered else rows), 0

    @property
    def facts(self) -> Mapping[str, Any]:
        version = getattr(self.rows, "_fingerprint", None)  # of `datasets`: changes with the data and what was done
        return {"data": self.name, "columns": [self.image, self.caption], "version": version}

    @property
    def early(self) -> int:
        return 1

    def __len__(self) -> int:
        return self._samples

    def read(self, samples: range) -> Iterator[Sample]:
        for i, row in zip(samples, self._rows(samples), strict=True):
            name = f"Sample {i} of {self.name}"
            for column in (self.image, self.caption):
                if column not in row:
                    raise InputError(f"{name} has no column {column!r}: it has {', '.join(row)}.")
            yield Sample(row[self.image], _text(row[self.caption], name), name)

    def _rows(self, samples: range) -> Iterator[Mapping[str, Any]]:
        if self._numbered:
            yield from (self.rows[i] for i in samples)
            return
        if samples.start != self._at:
            skip = getattr(self.rows, "skip", None)
            self._stream = iter(skip(samples.start)) if skip else islice(iter(self.rows), samples.start, None)
            self._at = samples.start
        for i in samples:
            row = next(self._stream, None)
            if row is None:
                raise InputError(f"{self.name} ends after {i} samples, and {len(self)} were asked for.")
            self._at += 1
            yield row


def source_of(
    place: Path | str, *, image: str = "image", caption: str = TEXT, split: str = "train", samples: int | None = None
) -> Source:
    """A folder of files, a folder that `datasets` saved, or a data set of the hub, which is streamed.

    Args:
        image, caption: columns of a data set; `caption` also of a folder's metadata.
        split: of a data set that has several.
        samples: only the first of them; None for all.

    Raises:
        InputError: there is no such place, or it does not hold pictures with captions; the message names the file.
        MachineError: `datasets` is not installed and would be needed.
    """
    path = Path(place)
    if path.is_dir() and not any((path / name).exists() for name in SAVED):
        return folder(path, caption, samples)
    named = isinstance(place, str) and HUB_ID.fullmatch(place) and not place.startswith(".")
    if not path.is_dir() and not named:
        raise InputError(f"There is no folder {place}: name a folder of pictures or a data set like 'owner/name'.")
    datasets = extra("datasets", "A Hugging Face data set")
    try:
        if path.is_dir():
            rows = datasets.load_from_disk(str(path))
            rows = rows[split] if (path / SAVED[1]).exists() else rows
        else:
            rows = datasets.load_dataset(str(place), split=split, streaming=True)
    except Exception as error:  # of the hub, of the network, of the files' formats
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"Could not open the data set {place}, split {split!r}: {why}.") from None
    return Table(rows, str(place), image=image, caption=caption, samples=samples)


def folder(path: Path, caption: str = TEXT, samples: int | None = None) -> Folder:
    """The files of a folder with their captions, in the order of its metadata, else of their names.

    Raises:
        InputError: no files, a file without a caption, or metadata that names a file that is not there.
    """
    files = sorted(file for file in path.rglob("*") if _is_media(file.relative_to(path)))
    if not files:
        raise InputError(f"{path} holds no pictures or videos: it must have {', '.join((*PICTURES, *VIDEOS))} files.")
    metadata = [path / name for name in METADATA if (path / name).exists()]
    if len(metadata) > 1:
        raise InputError(f"{path} has both {' and '.join(METADATA)}: keep one of them.")
    found = _listed(metadata[0], caption) if metadata else [(file, _beside(file)) for file in files]
    if lost := sorted({*files} - {file for file, _ in found}):
        raise InputError(f"{lost[0]} has no caption: {metadata[0]} does not name it.")
    if samples is not None and not 1 <= samples <= len(found):
        raise InputError(bad_value("samples", str(path), f"from 1 to the {len(found)} that it holds", samples))
    return Folder(path, tuple(found[:samples]))


def _is_media(inside: Path) -> bool:
    hidden = any(part.startswith(".") for part in inside.parts)
    return inside.suffix.lower() in (*PICTURES, *VIDEOS) and not hidden


def _beside(file: Path) -> str:
    text = file.with_suffix(".txt")
    if not text.exists():
        raise InputError(f"{file} has no caption: there is neither {text.name} beside it nor a {METADATA[0]}.")
    try:
        return text.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The caption {text} can't be read: {error}.") from None


def _listed(metadata: Path, caption: str) -> list[tuple[Path, str]]:
    try:
        with metadata.open(encoding="utf-8-sig", newline="") as file:
            return [_entry(metadata, number, row, caption) for number, row in _lines(metadata, file)]
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise InputError(f"{metadata} can't be read: {error}.") from None


def _lines(metadata: Path, file: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """(line, what it says)."""
    if metadata.suffix == ".csv":
        yield from enumerate(csv.DictReader(file), 2)
    else:
        yield from ((number, json.loads(line)) for number, line in enumerate(file, 1) if line.strip())


def _entry(metadata: Path, number: int, row: Any, caption: str) -> tuple[Path, str]:
    where = f"Line {number} of {metadata}"
    if not isinstance(row, Mapping) or not isinstance(row.get(FILE_NAME), str):
        raise InputError(f"{where} has no {FILE_NAME!r}.")
    file = metadata.parent / row[FILE_NAME]
    if not file.is_file():
        raise InputError(f"{where} names the file {row[FILE_NAME]}, which is not there.")
    return file, _text(row.get(caption), f"{where}, of the column {caption!r},")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name} has no caption: it must be text. Got {value!r}.")
    return value.strip()
