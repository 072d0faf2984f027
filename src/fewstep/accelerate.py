"""Put a recipe on a pipeline: everything is checked first, applied in order, and taken off again to the bit."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from fewstep.errors import InputError, RecipeError, bad_value
from fewstep.machine import Machine
from fewstep.models.model import Model
from fewstep.models.renoising import seeded_steps
from fewstep.recipe import Recipe, RecipeSource
from fewstep.techniques import Engaged, Quantize


class Accelerated:
    """A pipeline with a recipe on. Call it as the pipeline; whatever else is asked of it, the pipeline answers.

    Attributes:
        pipe: the pipeline, changed in place until `remove`.
        recipe: what was applied.
        engaged: what each technique really did, in the order of applying; counters fill while it runs.
    """

    def __init__(self, pipe: Any, recipe: Recipe, engaged: list[Engaged]) -> None:
        self.pipe, self.recipe, self.engaged = pipe, recipe, engaged
        self._defaults = {name: value for one in engaged for name, value in one.call_defaults.items()}
        self._signature = inspect.signature(pipe.__call__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The pipeline's own call. Techniques fill in defaults (a student its steps); what the caller gives goes first.

        Raises:
            InputError: a prompt that is no text, or a number of steps that is not a whole number above 0.
        """
        given = self._given(args, kwargs)
        check_call(given)
        filled = {name: value for name, value in self._defaults.items() if name not in given}
        for one in self.engaged:
            one.before_call({**filled, **given})
        for one in self.engaged:
            one.reset()
        try:
            with seeded_steps(getattr(self.pipe, "scheduler", None), given.get("generator")):
                output = self.pipe(*args, **kwargs, **filled)
        finally:
            for one in self.engaged:
                one.reset()
        self._warn()
        return output

    def remove(self) -> None:
        """Undo everything; the pipeline is then as it was, to the bit. A second call does nothing."""
        while self.engaged:
            self.engaged.pop().undo()
        self._defaults = {}

    def load_lora_weights(self, *args: Any, **kwargs: Any) -> Any:
        """The pipeline's own.

        Raises:
            InputError: over quantized layers, which take no adapter.
        """
        if any(one.name == Quantize.name for one in self.engaged):
            raise InputError(
                "A LoRA is loaded before layers are quantized, and stays precise beside them: "
                "call remove(), load it into the pipeline, and accelerate again."
            )
        return self.pipe.load_lora_weights(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "pipe":  # not there yet: a copy or an unpickling is under way
            raise AttributeError(name)
        return getattr(self.pipe, name)

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        try:
            bound = self._signature.bind_partial(*args, **kwargs).arguments
        except TypeError as error:
            raise InputError(f"{type(self.pipe).__name__} can't be called so: {error}.") from None
        return {**bound, **kwargs}

    def _warn(self) -> None:
        for one in self.engaged:
            for sentence in one.warnings():
                warnings.warn(sentence, RuntimeWarning, stacklevel=3)


def accelerate(pipe: Any, recipe: RecipeSource, machine: Machine | None = None) -> Accelerated:
    """Apply a recipe to a diffusers pipeline, in place.

    `recipe` is whatever `Recipe.load` takes; `machine` is the one this runs on unless given.

    Raises:
        InputError: `pipe` has nothing that denoises.
        RecipeError: the recipe can't be applied; all reasons at once, and nothing was touched.
    """
    model, recipe, machine = Model(_pipeline(pipe)), Recipe.load(recipe), machine or Machine.detect()
    if problems := recipe.problems(model, machine):
        raise RecipeError(*problems)
    engaged: list[Engaged] = []
    try:
        for technique in recipe.ordered():
            # A view of its own for each: the one before may have swapped modules.
            engaged.append(technique.apply(Model(pipe), machine))
    except BaseException:
        for one in reversed(engaged):
            one.undo()
        raise
    for sentence in recipe.wants(machine):
        warnings.warn(sentence, RuntimeWarning, stacklevel=2)
    return Accelerated(pipe, recipe, engaged)


def _pipeline(pipe: Any) -> Any:
    if isinstance(pipe, Accelerated):
        raise InputError(
            "This pipeline is accelerated already: call remove() first, or put all techniques in one recipe."
        )
    if not callable(pipe) or not isinstance(getattr(pipe, "components", None), dict) or not Model(pipe).denoisers:
        raise InputError(
            f"accelerate needs a diffusers pipeline with a transformer or U-Net. Got {type(pipe).__name__}."
        )
    return pipe


def check_call(call: Mapping[str, Any]) -> None:
    """Refuse what pipelines answer with a traceback from deep inside.

    Raises:
        InputError: as `Accelerated.__call__` says.
    """
    for name in ("prompt", "negative_prompt"):
        value = call.get(name)
        texts = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(text, str) for text in texts):
            raise InputError(bad_value(name, "the call", "text or a list of texts", value))
    steps = call.get("num_inference_steps")
    if steps is not None and (type(steps) is not int or steps <= 0):
        raise InputError(bad_value("num_inference_steps", "the call", "a whole number, at least 1", steps))
