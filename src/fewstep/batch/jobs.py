"""Requests as jobs, and the folder of what is made: a file's name is told by all that it depends on.

So the same thing is never made twice, be it asked for on two lines or in two runs. A file takes its place whole, after
its metadata: what is there is done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fewstep.batch.prompts import Request
from fewstep.batch.schedule import Task
from fewstep.files import replacing, write_json, write_text

INDEX = "index.jsonl"
VERSION = 1  # of what goes into a name
Named = Sequence[tuple[Request, str]]  # the requests of a run, each with the name of its output


@dataclass(frozen=True)
class Source:
    """What every output of a run is made with: the model's identity, and the recipe with what it names."""

    model: str
    recipe: Any

    def name(self, request: Request) -> str:
        """The name of a request's output, without ending."""
        depends = [VERSION, self.model, self.recipe, request.prompt, request.seed, dict(request.call)]
        return sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Folder:
    """The folder of the outputs. `suffix`: what their files end in, with the dot."""

    path: Path
    suffix: str

    def file(self, name: str) -> Path:
        return self.path / f"{name}{self.suffix}"

    def there(self, names: Iterable[str]) -> set[str]:
        """Which of the outputs are done."""
        if not self.path.is_dir():
            return set()
        found = {path.name for path in self.path.iterdir()}
        return {name for name in names if f"{name}{self.suffix}" in found}

    def write(self, name: str, data: bytes, facts: Mapping[str, Any]) -> None:
        """Write an output, its metadata beside it first.

        Raises:
            MachineError: the disk is full, or the folder can't be written to.
        """
        file = self.file(name)
        write_json(file.with_name(f"{file.name}.json"), dict(facts))
        with replacing(file) as aside:
            aside.write_bytes(data)

    def write_index(self, named: Named, failures: Mapping[str, str]) -> Path:
        """Write which line of the prompts gave which file. `failures`: name of an output -> why it is not made."""
        there = self.there(name for _, name in named)
        rows = (_row(request, name, self.suffix, name in there, failures) for request, name in named)
        path = self.path / INDEX
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return path


def tasks(named: Named, there: set[str]) -> list[Task]:
    """What is still to be made, each output once."""
    missing: dict[str, Request] = {}
    for request, name in named:
        if name not in there:
            missing.setdefault(name, request)
    return [Task(name, item(request), json.dumps(request.call, sort_keys=True)) for name, request in missing.items()]


def item(request: Request) -> dict[str, Any]:
    return {"prompt": request.prompt, "seed": request.seed, "call": dict(request.call)}


def _row(request: Request, name: str, suffix: str, there: bool, failures: Mapping[str, str]) -> dict[str, Any]:
    said = {"line": request.line, "id": request.id, "prompt": request.prompt, "seed": request.seed, **request.call}
    row = {key: value for key, value in said.items() if value is not None}
    if there:
        return {**row, "state": "made", "file": f"{name}{suffix}"}
    if name in failures:
        return {**row, "state": "failed", "why": failures[name]}
    return {**row, "state": "missing"}
