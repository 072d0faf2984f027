"""What a worker does for prompts: one model with a recipe on, called for some requests of equal arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fewstep.accelerate import accelerate
from fewstep.batch.identity import commit_of, identity
from fewstep.calibrate.signature import effective_call
from fewstep.checkpoints.load import load
from fewstep.errors import CheckpointError, InputError
from fewstep.machine import Machine, keep_freed_memory
from fewstep.media import encoded, fitting, shown
from fewstep.models.model import Model
from fewstep.recipe import Recipe
from fewstep.techniques import Stage

WARM_UP = {"prompt": "a", "seed": 0}
ARGUMENTS = {"steps": "num_inference_steps", "frames": "num_frames"}  # in the file -> in the call, where it differs


@dataclass(frozen=True)
class Drawing:
    """The settings of a `Drawer`.

    Attributes:
        model: `zoo:NAME`, a folder's absolute path, or a hub id.
        identity: of that model, to be sure that each machine has the same.
        recipe: its data, as `Recipe.load` takes it.
        suffix: what the files end in.
    """

    model: str
    identity: str
    recipe: Any
    suffix: str


class Drawer:
    """A `worker.Maker` of pictures or clips.

    Raises:
        CheckpointError: the model here is not the one that the run began with.
        FewstepError: it can't be loaded, the recipe does not fit, or clips are to go into a file of pictures.
    """

    def __init__(self, drawing: Drawing, threads: int) -> None:
        torch.set_num_threads(threads)
        keep_freed_memory()
        self.drawing = drawing
        if identity(drawing.model) != drawing.identity:
            raise CheckpointError(f"{drawing.model} holds other files here than where the run was started.")
        commit = commit_of(drawing.identity)
        pipe = load(drawing.model, **({"revision": commit} if commit else {})).to(Machine.detect().device)
        pipe.set_progress_bar_config(disable=True)
        moves = "num_frames" in inspect.signature(pipe.__call__).parameters
        if drawing.suffix not in fitting(moves):
            formats = " or ".join(suffix.removeprefix(".") for suffix in fitting(moves))
            what = "clips" if moves else "pictures"
            raise InputError(
                f"{drawing.model} makes {what}, which {drawing.suffix} can't hold: say --format {formats}."
            )
        self.arguments = Arguments(pipe)
        self.fast = accelerate(pipe, Recipe.load(drawing.recipe))
        self.warm: set[str] = set()

    @property
    def facts(self) -> dict[str, Any]:
        return {part.name: part.facts for part in self.fast.engaged}

    def make(self, items: Sequence[Mapping[str, Any]]) -> list[bytes]:
        call = self.arguments.of(items[0]["call"])
        if cached(self.fast.recipe) and repr(call) not in self.warm:
            # A cache may calibrate on the first call of a kind: it must not be another prompt in each worker.
            self._call([WARM_UP], call)
            self.warm.add(repr(call))
        return [encoded(frames, self.drawing.suffix) for frames in self._call(items, call)]

    def _call(self, items: Sequence[Mapping[str, Any]], call: Mapping[str, Any]) -> list[list[Any]]:
        # Some pipelines do not spread a single negative prompt over a batch.
        given = {name: [value] * len(items) if name == "negative_prompt" else value for name, value in call.items()}
        given["prompt"] = [item["prompt"] for item in items]
        given["generator"] = [torch.Generator("cpu").manual_seed(item["seed"]) for item in items]
        made = shown(self.fast(**given, output_type="pil"), self.drawing.model)
        if len(made) != len(items):
            raise InputError(f"{self.drawing.model} made {len(made)} results, and {len(items)} were asked for.")
        return made


def cached(recipe: Recipe) -> bool:
    """Whether a cache is in it: that decides for a whole call what to skip, so a picture would depend on companions."""
    return any(technique.stage == Stage.CACHE for technique in recipe.techniques)


class Arguments:
    """Turns the arguments of a line into those of a pipeline's call."""

    def __init__(self, pipe: Any) -> None:
        self.name, self.known = type(pipe).__name__, inspect.signature(pipe.__call__).parameters
        self.model = Model(pipe)
        self.guidance = self.model.guidance_argument

    def of(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments for a line's `steps`, `guidance`, `width`, `height`, `frames`, `negative_prompt`.

        Raises:
            InputError: one that this pipeline's call does not have.
        """
        names = {**ARGUMENTS, **({"guidance": self.guidance} if self.guidance else {})}
        call = {names.get(name, name): value for name, value in line.items()}
        if missing := [name for name in line if names.get(name, name) not in self.known]:
            raise InputError(f"{self.name} takes no {missing[0]!r}: leave it out.")
        if "true_cfg_scale" in call and effective_call(self.model, call).get("negative_prompt") is None:
            call["negative_prompt"] = ""  # without a second prompt this scale does nothing
        return call
