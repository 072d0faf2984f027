"""What a server is told at its start: which models, how much, for how long, who may."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fewstep.errors import InputError, bad_value
from fewstep.files import read_entries
from fewstep.server.web.origin import is_loopback

MODEL_FILES = (".yaml", ".yml")
Entry = TypeVar("Entry", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelEntry(_Frozen):
    """One model that is served.

    Attributes:
        name: what clients call it.
        model: `zoo:NAME`, a pipeline folder, or a hub id.
        recipe: the tricks to use where a request names none: a ready-made recipe's name, a file, or the list itself.
        recipes: those that a request may name instead, by name. To change from one to another costs time at each
            change, minutes where the new one compiles.
        call: defaults of the pipeline's call.
        fps: frames a second of its videos.
        batch: pictures in one call of the pipeline, at most.
        max_pixels: of a picture or frame, at most.
        max_seconds: of a video, at most.
    """

    name: str = Field(min_length=1, max_length=200)
    model: str
    recipe: str | list[Any] | None = None
    recipes: Mapping[str, str | list[Any]] = {}
    call: Mapping[str, Any] = {}
    fps: int = Field(default=16, ge=1, le=120)
    batch: int = Field(default=8, ge=1)
    max_pixels: int = Field(default=2048 * 2048, ge=1)
    max_seconds: float = Field(default=20, gt=0)


class Limits(_Frozen):
    """How much the server takes on.

    Attributes:
        queue: requests that may wait, of pictures and of videos each.
        keep_hours: how long results stay.
        keep_gb: how many gigabytes (10⁹ bytes) of results stay; the oldest go first.
        body_mb: megabytes (10⁶ bytes) of one request, at most.
        attempts: how often a video is begun again after the server died over it, before it counts as failed.
    """

    queue: int = Field(default=64, ge=1)
    keep_hours: float = Field(default=24, gt=0)
    keep_gb: float = Field(default=10, gt=0)
    body_mb: float = Field(default=25, gt=0)
    attempts: int = Field(default=5, ge=1)


class KeyEntry(_Frozen):
    """A client's key: never itself, only its hash, and what its owner may do.

    Attributes:
        name: of its owner.
        sha256: of the key, in hexadecimal digits.
        requests_per_minute: requests to make something, at most.
        jobs_waiting: of its own, at most, that wait or run at one time.
    """

    name: str = Field(min_length=1, max_length=200)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    requests_per_minute: int | None = Field(default=None, ge=1)
    jobs_waiting: int | None = Field(default=None, ge=1)


class ServerConfig(_Frozen):
    """A whole server.

    Attributes:
        models: the first of a kind is the one that a request without `model` gets.
        folder: where jobs and results are kept; one server a folder.
        limits: how much it takes on.
        keys: who may ask; None: everyone.
        guarded: refuse what a browser sends on behalf of another site; for a server without keys on this machine.
    """

    models: tuple[ModelEntry, ...] = Field(min_length=1)
    folder: Path
    limits: Limits = Limits()
    keys: tuple[KeyEntry, ...] | None = None
    guarded: bool = True


def read_models(source: str, recipe: str | None) -> tuple[ModelEntry, ...]:
    """The models that a command line names: one model, or a YAML file with a list of them under `models`.

    Raises:
        InputError: no such file, or what is wrong in it.
    """
    if not source.endswith(MODEL_FILES):
        name = source if not Path(source).is_dir() else Path(source).resolve().name
        return (ModelEntry(name=name, model=source, recipe=recipe),)
    if recipe is not None:
        raise InputError(f"A recipe for each model stands in {source}; leave out --recipe.")
    entries = read_entries(source, "models")
    models = tuple(_entry(ModelEntry, entry, f"{source}, model {i + 1}") for i, entry in enumerate(entries))
    if not models:
        raise InputError(bad_value("models", source, "a list of at least one model", entries))
    _check_distinct([model.name for model in models], source)
    return models


def read_keys(path: Path) -> tuple[KeyEntry, ...]:
    """The keys in a YAML file, a list under `keys`.

    Raises:
        InputError: no such file, or what is wrong in it.
    """
    keys = tuple(_entry(KeyEntry, entry, f"{path}, key {i + 1}") for i, entry in enumerate(read_entries(path, "keys")))
    _check_distinct([key.name for key in keys], str(path))
    return keys


def check_host(host: str, *, keys: bool, open_to_all: bool) -> None:
    """Refuse to be reachable from other machines without keys.

    Raises:
        InputError: a host that is not this machine alone, no keys, and not `open_to_all`.
    """
    if not (keys or open_to_all or is_loopback(host)):
        raise InputError(
            f"Without --keys everyone who reaches --host {host} could use this server: "
            "give --keys FILE, stay on 127.0.0.1, or say --open if that is meant."
        )


def _entry(kind: type[Entry], entry: Any, where: str) -> Entry:
    try:
        return kind.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "entry"
        raise InputError(f"The {field!r} of {where} is wrong: {first['msg']}. Got {first['input']!r}.") from None


def _check_distinct(names: list[str], where: str) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"Two entries in {where} have the name {twice[0]!r}; names must differ.")
