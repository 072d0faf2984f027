"""The live model of a server: loaded once, for viewers' sessions and for the API's whole calls, which take turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fewstep.accelerate import Accelerated, accelerate
from fewstep.errors import InputError
from fewstep.machine import Machine
from fewstep.models.load import resolve
from fewstep.models.manifest import Manifest
from fewstep.realtime import LiveModel, Session
from fewstep.recipe import Recipe
from fewstep.server.config import ModelEntry
from fewstep.techniques import Compile, FewStep, Precision, Stage, Technique

WARM_UP, PROMPT = 3, "a"  # chunks until nothing is compiled any more, and what they show
Between = Callable[[], None]


@dataclass(eq=False)
class SharedModel(LiveModel):
    """A live model whose pipeline is also called as a whole. A call has the lock of the denoiser, as sessions do, and
    gives way between its steps.

    Its `pipe` is a second pipeline over the same parts, since a call writes to its pipeline and to the scheduler.

    Attributes:
        calls: held by a whole call to its end, and by whoever changes the techniques, which no call would survive.
    """

    calls: Any = field(default_factory=threading.RLock)

    @classmethod
    def beside(cls, pipe: Any, techniques: tuple[Technique, ...]) -> SharedModel:
        """A live model over the parts of `pipe`, with these techniques on.

        Raises:
            InputError, TraceError: as `LiveModel.of`.
        """
        live = copy(pipe)
        live.scheduler = deepcopy(pipe.scheduler)
        model = cls.of(live, techniques)
        assert isinstance(model, SharedModel)
        model.put_on(frozenset(model.techniques))
        return model

    def put_on(self, names: frozenset[str]) -> None:
        if frozenset(self.engaged) != names:  # or each new viewer would wait for the end of a call
            with self.calls:
                super().put_on(names)

    def warm(self) -> None:
        """Let a session compile what it needs."""
        with Session(self, PROMPT, paced=False) as session:
            for _ in zip(range(WARM_UP), session, strict=False):
                pass

    @contextmanager
    def lent(self, pipe: Any, recipe: Recipe | None) -> Iterator[tuple[Accelerated, Between]]:
        """`pipe`, of the same parts, for one whole call, and what is to be called between its steps.

        Without a recipe the sessions' techniques stay on, and chunks are made between the steps. With one, sessions
        wait for the end of the call, and compile anew after it.
        """
        with self.calls, ExitStack() as undo:
            if recipe is not None:  # it waits for the end of an opening, as whoever changes techniques
                undo.enter_context(self.openings)
            undo.enter_context(self.lock)
            if recipe is None:
                # Each number of frames would be compiled for, and all sessions would wait for that.
                undo.enter_context(torch.compiler.set_stance("force_eager"))
                engaged = [] if self._on is None else self._on.engaged
                yield Accelerated(pipe, Recipe(tuple(self.techniques.values())), engaged), self._give_way
                return
            undo.enter_context(self.decoding)
            undo.callback(self.put_on, frozenset(self.engaged))
            self.put_on(frozenset())
            fast = accelerate(pipe, recipe)
            undo.callback(fast.remove)
            yield fast, lambda: None

    def _give_way(self) -> None:
        with torch.compiler.set_stance("default"):
            self.lock.give_way()


def live_entry(entries: Iterable[ModelEntry]) -> ModelEntry | None:
    """The first model that makes video chunk by chunk, by its manifest; None where there is none."""
    for entry in entries:
        place = resolve(entry.model)
        manifest = Manifest.read(place) if isinstance(place, Path) else None
        if manifest is not None and manifest.causal is not None:
            return entry
    return None


def techniques_of(entry: ModelEntry) -> tuple[Technique, ...]:
    """What is on for live video: the entry's recipe; without one, bfloat16 and compilation where they work.

    Raises:
        InputError: a recipe with something in it that needs a whole call.
        RecipeError: no recipe.
    """
    if entry.recipe is None:
        machine = Machine.detect()
        wanted = {"bf16": Precision(), "compile": Compile()}
        return tuple(one for feature, one in wanted.items() if machine.missing(feature) is None)
    techniques = Recipe.load(entry.recipe).ordered()
    names = [one.name for one in techniques]
    for one in techniques:
        if one.stage is Stage.CACHE or one.name == FewStep.name or names.count(one.name) > 1:
            raise InputError(
                f"The recipe of {entry.name} must be one that live video can have: each technique once, no cache and "
                f"no other student. Got {one.name!r}."
            )
    return techniques
