"""Reading that says what is wrong, and writing that never damages what is there: write beside it, then rename."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from fewstep.errors import InputError, MachineError

FULL = ("No space left on device", "unexpected pos")


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder to; takes `path`'s place when the block ends well.

    When the block fails, what was there before stays and the half-written one is deleted.

    Raises:
        MachineError: the disk is full or the place can't be written to.
    """
    path = Path(path)
    aside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield aside / path.name
        _swap(aside / path.name, path, aside / "old")
    except Exception as error:
        if not isinstance(error, OSError) and not disk_is_full(error):
            raise
        why = "the disk is full" if disk_is_full(error) else getattr(error, "strerror", None) or error
        raise MachineError(f"Could not write {path}: {why}. Nothing there was changed.") from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def disk_is_full(error: BaseException | None) -> bool:
    """Also where a library says it in an error of its own, as safetensors and torch.save (its "unexpected pos") do."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or any(words in str(error) for words in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def _swap(new: Path, place: Path, old: Path) -> None:
    if place.is_dir():  # a folder can't be renamed over a full one
        os.rename(place, old)
        try:
            os.rename(new, place)
        except OSError:
            os.rename(old, place)
            raise
    else:
        os.replace(new, place)


def write_text(path: Path | str, text: str) -> None:
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """The value in a JSON file.

    Raises:
        InputError: no such file, or it is not JSON.
    """
    try:
        return json.loads(_text(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} must be a JSON file: {error}.") from None


def read_yaml(path: Path | str) -> Any:
    """The value in a YAML file.

    Raises:
        InputError: no such file, it is not YAML, or a mapping has a key twice.
    """
    try:
        return yaml.load(_text(path), _Strict)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).replace(' in "<unicode string>",', " at").split())
        raise InputError(f"{path} must be a YAML file: {why}.") from None


def read_entries(path: Path | str, key: str) -> list[Any]:
    """The list that is all a YAML file has, under `key`.

    Raises:
        InputError: as `read_yaml`, or the file holds something else.
    """
    value = read_yaml(path)
    entries = value.get(key) if isinstance(value, dict) and set(value) == {key} else None
    if not isinstance(entries, list):
        raise InputError(f"{path} must hold one list, under {key!r}.")
    return entries


class _Strict(yaml.SafeLoader):
    """Of a key that is there twice YAML takes the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (one := (key.tag, key.value)) not in seen:
                seen.add(one)
            elif isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _text(path: Path | str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except OSError as error:
        raise InputError(f"Could not read {path}: {error.strerror or error}.") from None
