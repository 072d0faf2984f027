"""Which model a name or folder stands for, told by what is in it: two places with the same files are one model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from fewstep.errors import InputError
from fewstep.models.load import INDEX, component_folders, fetched, resolve
from fewstep.models.manifest import FILE

BLOCK = 4096  # bytes
BLOCKS = 1024  # of each file go into the hash: enough to tell models apart, quick on billions of weights
MADE_BY_A_RUN = ("calibration",)  # fields of a recipe with a file that the first call may write


def identity(source: str | Path) -> str:
    """What a pipeline is made of, as a short text: of a hub id its commit, of a folder a hash of its files.

    Raises:
        InputError: nothing there, no pipeline, or a hub id that can't be had.
    """
    place = resolve(source)
    if isinstance(place, Path):
        return f"sha256:{_hash(_files(place))}"
    index = fetched(place, INDEX, {})
    if index is None:
        raise InputError(f"Could not find the pipeline {place} on the hub, or reach it.")
    return f"{place}@{index.parent.name}"


def commit_of(identity: str) -> str | None:
    """The commit in the identity of a hub id."""
    return None if identity.startswith("sha256:") else identity.rpartition("@")[2]


def contents(recipe: Any) -> Any:
    """A recipe's data with the models and files that it names replaced by what is in them."""
    return _mapped(recipe, lambda text: f"sha256:{_hash([('', Path(text))])}" if _is_file(text) else identity(text))


def anchored(recipe: Any) -> Any:
    """A recipe's data with the paths in it made absolute: a worker may run in another folder."""
    return _mapped(recipe, lambda text: text if text.startswith("zoo:") else str(Path(text).resolve()))


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        return {k: inner if k in MADE_BY_A_RUN else _mapped(inner, change) for k, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(inner, change) for inner in value]
    return change(value) if isinstance(value, str) and _is_place(value) else value


def _is_place(text: str) -> bool:
    return text.startswith("zoo:") or _is_file(text) or (Path(text) / INDEX).is_file()


def _is_file(text: str) -> bool:
    return bool(Path(text).suffix) and Path(text).is_file()


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name -> file of all that a pipeline is loaded from, wherever it lies."""
    parts = component_folders(folder)
    yield from ((name, folder / name) for name in (INDEX, FILE) if (folder / name).is_file())
    for part in sorted(parts):
        files = sorted(path for path in parts[part].rglob("*") if path.is_file())
        yield from ((f"{part}/{path.relative_to(parts[part]).as_posix()}", path) for path in files)


def _hash(files: Any) -> str:
    digest = sha256()
    for name, path in files:
        size = path.stat().st_size
        digest.update(f"{name} {size}\n".encode())
        with path.open("rb") as file:
            for start in _starts(size):
                file.seek(start)
                digest.update(file.read(BLOCK))
    return digest.hexdigest()[:24]


def _starts(size: int) -> Iterator[int]:
    """Where the blocks begin: every one of a small file, evenly spread over a large one, its end among them."""
    count = -(-size // BLOCK)
    if count <= BLOCKS:
        return iter(range(0, size, BLOCK))
    return (round(i * (size - BLOCK) / (BLOCKS - 1)) for i in range(BLOCKS))
