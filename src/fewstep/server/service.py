"""What all routes share: the parts of one server, and the checks that every request to make something goes through."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Literal

from fewstep.errors import MachineError
from fewstep.server.config import KeyEntry, ModelEntry, ServerConfig
from fewstep.server.engine import OWN, Engine, Work
from fewstep.server.errors import ApiError, busy, invalid, not_found, not_ready
from fewstep.server.facts import Facts, Kind
from fewstep.server.jobs import WAITING, Jobs
from fewstep.server.keys import Door
from fewstep.server.metrics import Metrics
from fewstep.server.results import Results
from fewstep.server.schema import Extras, width_height
from fewstep.server.worker import Worker

PLACES = {"image": "/v1/images/generations", "video": "/v1/videos"}
RESULTS, DATABASE = "results", "jobs.sqlite"


@dataclass(frozen=True)
class Service:
    """The parts of one server."""

    config: ServerConfig
    engine: Engine
    jobs: Jobs
    results: Results
    metrics: Metrics
    worker: Worker
    door: Door
    started: float

    @classmethod
    def of(cls, config: ServerConfig) -> Service:
        """Open the server's folder; what a crash left is put right.

        Raises:
            MachineError: another server uses the folder, or it can't be written to.
        """
        folder = config.folder / RESULTS
        try:
            config.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts are nobody else's business
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise MachineError(f"Could not use the folder {config.folder}: {error.strerror}.") from None
        jobs, metrics, engine = Jobs(config.folder / DATABASE), Metrics(), Engine(config.models)
        results = Results(folder, jobs, config.limits)
        results.tidy()
        jobs.requeue()
        worker = Worker(engine, jobs, results, metrics)
        door = Door(config.keys, config.guarded)
        return cls(config, engine, jobs, results, metrics, worker, door, time.time())

    def close(self) -> None:
        self.worker.stop()
        self.jobs.close()

    def check_waiting(self, caller: KeyEntry) -> None:
        """Refuse one more job of a key that has as many waiting as it may.

        Raises:
            ApiError: 429.
        """
        most = caller.jobs_waiting
        if most is None:
            return
        waiting = self.worker.count(caller.name) + self.jobs.count(*WAITING, owner=caller.name)
        if waiting >= most:
            raise busy(f"The key {caller.name!r} may have {most} jobs waiting.", 5, "rate_limit_exceeded")

    def model(self, name: str | None, kind: Kind) -> tuple[ModelEntry, Facts]:
        """The model that a request names, or the first that makes what it asks for.

        Raises:
            ApiError: 404, no such model; 400, it makes something else; 503, it is not loaded yet.
        """
        if name is not None and name not in self.engine.entries:
            raise not_found("model", name, "model_not_found", "model")
        if not self.worker.ready.is_set():
            raise not_ready("The models are being loaded; come again later.")
        facts = self.engine.facts
        chosen = name or next((known for known, fact in facts.items() if fact.kind == kind), None)
        if chosen is None:
            raise invalid(f"No model here makes a {kind}.", "model", "model_not_found")
        if facts[chosen].kind != kind:
            made = facts[chosen].kind
            raise invalid(f"The model {chosen!r} makes a {made}: send this to {PLACES[made]}.", "model", "wrong_kind")
        return self.engine.entries[chosen], facts[chosen]


def new_id(kind: Literal["video", "file"]) -> str:
    """An id that nobody guesses."""
    return f"{kind}_{secrets.token_hex(24)}"


def seed_of(extras: Extras) -> int:
    return secrets.randbelow(2**32) if extras.seed is None else extras.seed


def work_of(entry: ModelEntry, facts: Facts, size: tuple[int, int] | None, extras: Extras) -> Work:
    """What a call is to do, checked against the model.

    Raises:
        ApiError: 400, what the model can't do.
    """
    recipe = extras.recipe or OWN
    if recipe not in facts.recipes:
        raise invalid(f"There is no recipe {recipe!r}; there is {', '.join(facts.recipes)}.", "fewstep.recipe")
    if problems := facts.recipes[recipe]:
        raise invalid(" ".join(problems), "fewstep.recipe", "recipe_does_not_fit")
    if extras.guidance is not None and facts.guidance is None:
        raise invalid(f"{entry.name} takes no guidance: leave it out.", "fewstep.guidance")
    if size is not None:
        _check_size(entry, facts, size)
    return Work(entry.name, recipe, size, extras.steps, extras.guidance, strength=extras.strength)


def size_of(facts: Facts, asked: str | None) -> tuple[int, int] | None:
    """The size that is asked for, or the model's own."""
    return width_height(asked) or facts.size


def _check_size(entry: ModelEntry, facts: Facts, size: tuple[int, int]) -> None:
    width, height = size
    if width % facts.multiple or height % facts.multiple:
        rule = f"width and height must be multiples of {facts.multiple}"
    elif width * height > entry.max_pixels:
        rule = f"it must have at most {entry.max_pixels} pixels"
    else:
        return
    raise ApiError(400, f"The size of {entry.name}: {rule}. Got {width}x{height}.", "invalid_size", "size")
