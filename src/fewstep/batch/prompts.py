"""The file of prompts: one a line, as JSON or as plain text. A line that is wrong is named, never just dropped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from fewstep.errors import InputError
from fewstep.text import readable

JSON_LINES = (".jsonl", ".ndjson")
TEXT_LINES = (".txt",)
SEEDS = 2**63  # a generator of torch takes seeds below it


@dataclass(frozen=True)
class Request:
    """One line of the file.

    Attributes:
        line: its number, from 1 on.
        prompt: what to show.
        seed: of the noise.
        id: what the user calls it; None: nothing.
        call: the other arguments by their names in the file, those of `ARGUMENTS`.
    """

    line: int
    prompt: str
    seed: int
    id: str | None = None
    call: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Broken:
    """A line that can't be used, and why in one sentence without the file's name."""

    line: int
    why: str


@dataclass(frozen=True)
class Prompts:
    """What a file holds: `requests` and `broken` lines, each in the order of the file."""

    requests: tuple[Request, ...]
    broken: tuple[Broken, ...]


def _whole(least: int, below: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value < below


def _scale(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


# What a line may say: name -> (whether a value is right, what is right).
Rules = Mapping[str, tuple[Callable[[Any], bool], str]]
ARGUMENTS: Rules = {
    "steps": (_whole(1), "a whole number, at least 1"),
    "guidance": (_scale, "a number, at least 0"),
    "width": (_whole(1), "a whole number, at least 1"),
    "height": (_whole(1), "a whole number, at least 1"),
    "frames": (_whole(1), "a whole number, at least 1"),
    "negative_prompt": (readable, "a text"),
}
FIELDS: Rules = {
    "prompt": (lambda value: readable(value) and bool(value.strip()), "a text of at least one word"),
    "seed": (_whole(0, SEEDS), "a whole number from 0 to 2^63 - 1"),
    "id": (lambda value: (readable(value) and value != "") or type(value) is int, "a text or a whole number"),
    **ARGUMENTS,
}


def read(path: Path | str) -> Prompts:
    """The prompts in a `.jsonl` or `.ndjson` file of JSON objects, or in a `.txt` file of plain lines.

    Raises:
        InputError: no such file, or one of another ending.
    """
    path = Path(path)
    if path.suffix.lower() not in (*JSON_LINES, *TEXT_LINES):
        endings = ", ".join((*JSON_LINES, *TEXT_LINES))
        raise InputError(f"A file of prompts ends in one of {endings}. Got {path}.")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except OSError as error:
        raise InputError(f"Could not read {path}: {error.strerror or error}.") from None
    return parse(data, plain=path.suffix.lower() in TEXT_LINES)


def parse(data: bytes, *, plain: bool = False) -> Prompts:
    """The prompts in the bytes of a file. Empty lines are none; two lines may have one id only if they are equal."""
    parsed = [_line(number, line, plain) for number, line in _lines(data)]
    requests = [one for one in parsed if isinstance(one, Request)]
    twice = list(_ambiguous(requests))
    refused = {one.line for one in twice}
    broken = [*(one for one in parsed if isinstance(one, Broken)), *twice]
    return Prompts(
        tuple(request for request in requests if request.line not in refused),
        tuple(sorted(broken, key=lambda one: one.line)),
    )


def seed_of(prompt: str) -> int:
    """The seed of a line that names none: its prompt's own, so that each prompt has its noise wherever it stands."""
    return int.from_bytes(sha256(prompt.encode()).digest()[:4], "big")


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    # Only at line feeds: str.splitlines would cut at characters that JSON allows inside a text.
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            yield number, line


def _line(number: int, line: bytes, plain: bool) -> Request | Broken:
    try:
        text = line.decode("utf-8").strip()
        given = {"prompt": text} if plain else json.loads(text, object_pairs_hook=_once)
    except UnicodeDecodeError:
        return Broken(number, "It is no UTF-8.")
    except _Twice as twice:
        return Broken(number, f"The {twice.args[0]!r} is there twice.")
    except (ValueError, RecursionError) as error:
        return Broken(number, f"It is no JSON: {error}.")
    if not isinstance(given, dict):
        return Broken(number, f"It must be a JSON object with a 'prompt'. Got {_short(given)}.")
    why = _fault(given)
    return Broken(number, why) if why else _request(number, given)


def _fault(given: Mapping[str, Any]) -> str | None:
    for name, value in given.items():
        if name not in FIELDS:
            return f"It has a field {name!r}, and a line may have {', '.join(FIELDS)}."
        right, rule = FIELDS[name]
        if not right(value):
            return f"The {name!r} must be {rule}. Got {_short(value)}."
    return None if "prompt" in given else "It has no 'prompt'."


def _request(number: int, given: Mapping[str, Any]) -> Request:
    prompt, call = given["prompt"], {name: value for name, value in given.items() if name in ARGUMENTS}
    seed = given.get("seed", seed_of(prompt))
    return Request(number, prompt, seed, None if "id" not in given else str(given["id"]), call)


def _ambiguous(requests: Iterable[Request]) -> Iterator[Broken]:
    """Lines whose id stands for something else further up."""
    first: dict[str, Request] = {}
    for request in requests:
        if request.id is None:
            continue
        other = first.setdefault(request.id, request)
        if (other.prompt, other.seed, other.call) != (request.prompt, request.seed, request.call):
            yield Broken(request.line, f"The 'id' {request.id!r} is that of line {other.line}, which asks for another.")


class _Twice(Exception):
    """A name that a JSON object has twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in pairs:
        if name in given:
            raise _Twice(name)
        given[name] = value
    return given


def _short(value: Any, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


def refuse(broken: Iterable[Broken], path: Path | str) -> list[str]:
    """One sentence a broken line, with the file and the line's number."""
    return [f"{path}, line {one.line}: {one.why}" for one in broken]
