"""The models themselves: loaded, with a recipe on, and called. One thread owns an engine; nothing here knows HTTP."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from fewstep.accelerate import Accelerated, accelerate
from fewstep.checkpoints.load import load
from fewstep.errors import FewstepError, InputError, RecipeError
from fewstep.machine import Machine
from fewstep.models.manifest import manifest_of
from fewstep.models.model import Model
from fewstep.recipe import Recipe
from fewstep.server.config import ModelEntry
from fewstep.server.facts import Facts, facts_of
from fewstep.server.shared import Between, SharedModel, live_entry, techniques_of
from fewstep.techniques import Stage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OWN = "default"  # the name of the recipe that is on where a request names none
WARM_UP = "a"
OnStep = Callable[[int, int], None]  # steps done, steps in all (0: unknown); what it raises ends the call


@dataclass(frozen=True)
class Work:
    """What one call of a pipeline does, beyond its prompts. Pictures of equal work may share a call.

    Attributes:
        model: the entry's name.
        recipe: the recipe's name.
        size: width and height; None: the pipeline's own.
        steps: None: the model's own number.
        guidance: None: the model's own.
        frames: of a video.
        strength: of an edit, in (0, 1]; None: the pipeline's own.
    """

    model: str
    recipe: str
    size: tuple[int, int] | None = None
    steps: int | None = None
    guidance: float | None = None
    frames: int | None = None
    strength: float | None = None


@dataclass(frozen=True, eq=False)
class Shot:
    """One picture or video of a call.

    Attributes:
        prompt: what it shows.
        seed: of its noise, its own whatever else is in the call.
        image: to start from.
        mask: white where `image` is to be painted anew.
    """

    prompt: str
    seed: int
    image: Image.Image | None = None
    mask: Image.Image | None = None


@dataclass(eq=False)
class _Loaded:
    entry: ModelEntry
    pipe: Any
    facts: Facts
    recipes: dict[str, Recipe]
    worn: str | None = None  # the recipe that is on, by name
    fast: Accelerated | None = None
    live: SharedModel | None = None  # which then sees to what is on


class Engine:
    """All models of a server. `facts` and `live` may be read by any thread; all else belongs to the one that loads.

    Attributes:
        entries: the models by name.
        facts: of those that are warm.
        live: the one that sessions share with the API, once it is warm, or why there is none; of `live_entry`.
        live_entry: the model that makes video chunk by chunk; None where none does.
        techniques: of that one.

    Raises:
        InputError: a recipe that live video can't have.
    """

    def __init__(self, entries: Sequence[ModelEntry]) -> None:
        self.entries = {entry.name: entry for entry in entries}
        self.facts: dict[str, Facts] = {}
        self.live: Future[SharedModel] = Future()
        self.live_entry = live_entry(entries)
        self.techniques = techniques_of(self.live_entry) if self.live_entry else ()
        self._models: dict[str, _Loaded] = {}

    def load(self) -> None:
        """Load every model, put its recipe on, and call it once, which calibrates and compiles what needs that.

        Raises:
            FewstepError: a model that can't be loaded, or a recipe that does not fit it.
        """
        try:
            for entry in self.entries.values():
                self._load(entry)
        except Exception as error:
            if not self.live.done():
                self.live.set_exception(error)
            raise

    def _load(self, entry: ModelEntry) -> None:
        pipe = load(entry.model).to(Machine.detect().device)
        pipe.set_progress_bar_config(disable=True)
        recipes = _recipes(entry)
        problems = {name: tuple(recipe.problems(Model(pipe), Machine.detect())) for name, recipe in recipes.items()}
        if problems[OWN]:
            raise RecipeError(*(f"{entry.name}: {problem}" for problem in problems[OWN]))
        loaded = _Loaded(entry, pipe, facts_of(pipe, entry.call, problems), recipes)
        self._models[entry.name] = loaded
        if entry is self.live_entry:
            loaded.live = self._share(pipe)
        self._warm(loaded)
        if loaded.live:
            self.live.set_result(loaded.live)
        self.facts[entry.name] = loaded.facts

    def _share(self, pipe: Any) -> SharedModel | None:
        try:
            model = SharedModel.beside(pipe, self.techniques)
        except FewstepError as error:  # the API still has the model
            self.live.set_exception(error)
            return None
        model.warm()
        return model

    def _warm(self, loaded: _Loaded) -> None:
        facts = loaded.facts
        if facts.starts_from:  # what such a picture is like, only its user knows
            with _worn(loaded, OWN):
                return
        work = Work(loaded.entry.name, OWN, size=facts.size, frames=facts.frames)
        self.run(work, [Shot(WARM_UP, 0)], lambda done, steps: None)

    def most(self, work: Work) -> int:
        """How many pictures one call may make. A cache decides for the whole call when to skip a step, so that with one
        on, a picture would depend on its companions: then it is one."""
        loaded = self._models[work.model]
        cached = any(one.stage == Stage.CACHE for one in loaded.recipes[work.recipe].techniques)
        return 1 if cached else loaded.entry.batch

    def run(self, work: Work, shots: Sequence[Shot], on_step: OnStep) -> list[Any]:
        """The pictures (PIL), or the videos (uint8 arrays of shape (frames, height, width, 3)), of one call.

        Raises:
            InputError: the model gave another size than was asked for, or nothing.
            Whatever the pipeline and `on_step` raise.
        """
        import torch

        loaded = self._models[work.model]
        with _worn(loaded, work.recipe) as (fast, between):
            defaults = dict(loaded.entry.call)
            if shots[0].image is not None and loaded.facts.kind == "image":
                fast, inherited = _editing(fast, "image" if shots[0].mask is None else "mask")
                defaults = {**inherited, **defaults}
            parameters = inspect.signature(fast.pipe.__call__).parameters
            call = arguments(work, shots, defaults, loaded.facts)
            call["generator"] = [torch.Generator("cpu").manual_seed(shot.seed) for shot in shots]
            if "callback_on_step_end" in parameters:
                call["callback_on_step_end"] = _telling(on_step, between)
            output = fast(**call)
        made = _results(output, loaded.facts.kind)
        _check(made, work, len(shots))
        return made


def arguments(work: Work, shots: Sequence[Shot], defaults: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """The keyword arguments of a pipeline's call, without its generators."""
    width, height = work.size or (None, None)
    given = {
        "prompt": [shot.prompt for shot in shots],
        "width": width,
        "height": height,
        "num_inference_steps": work.steps,
        "num_frames": work.frames,
        "strength": work.strength,
        "image": shots[0].image,
        "mask_image": shots[0].mask,
        "output_type": "np" if facts.kind == "video" else "pil",
    }
    if work.guidance is not None and facts.guidance is not None:
        given[facts.guidance] = work.guidance
        if facts.guidance == "true_cfg_scale":  # which does nothing without a second prompt
            given["negative_prompt"] = ""
    return {**defaults, **{name: value for name, value in given.items() if value is not None}}


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that there was not enough memory, on a GPU or off it."""
    import torch

    said = "can't allocate memory" in str(error) or "out of memory" in str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and said)


def free_memory() -> None:
    """Give back what nothing uses, after a call that failed."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _recipes(entry: ModelEntry) -> dict[str, Recipe]:
    named = {OWN: entry.recipe or [], **entry.recipes}
    try:
        return {name: Recipe.load(source) for name, source in named.items()}
    except FewstepError as error:
        raise InputError(f"A recipe of {entry.name}: {error}") from None


@contextmanager
def _worn(loaded: _Loaded, name: str) -> Iterator[tuple[Accelerated, Between]]:
    """The model with the recipe `name` on, for one call, and what is to be called between its steps."""
    if loaded.live is None:
        yield _wear(loaded, name), lambda: None
    else:
        with loaded.live.lent(loaded.pipe, None if name == OWN else loaded.recipes[name]) as lent:
            yield lent


def _wear(loaded: _Loaded, name: str) -> Accelerated:
    """The model with the recipe `name` on; the one before is taken off first."""
    if loaded.fast is not None and loaded.worn == name:
        return loaded.fast
    if loaded.fast is not None:
        loaded.fast.remove()
    loaded.fast, loaded.worn = None, None
    loaded.fast, loaded.worn = accelerate(loaded.pipe, loaded.recipes[name]), name
    return loaded.fast


def _editing(fast: Accelerated, what: str) -> tuple[Accelerated, dict[str, Any]]:
    """The same parts, with the same recipe on, in diffusers' pipeline for starting from a picture; and the defaults of
    its call, since those of the manifest and the recipe are for the pipeline that it comes from."""
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

    auto = {"image": AutoPipelineForImage2Image, "mask": AutoPipelineForInpainting}[what]
    pipe = auto.from_pipe(fast.pipe)
    pipe.set_progress_bar_config(disable=True)
    taken = inspect.signature(pipe.__call__).parameters
    manifest = manifest_of(fast.pipe)
    defaults = dict(manifest.call) if manifest else {}
    for one in fast.engaged:
        defaults |= one.call_defaults
    engaged = [replace(one, call_defaults={}) for one in fast.engaged]
    fitting = {name: value for name, value in defaults.items() if name in taken}
    return Accelerated(pipe, fast.recipe, engaged), fitting


def _telling(on_step: OnStep, between: Between) -> Callable[..., dict[str, Any]]:
    def callback(pipe: Any, step: int, time: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        on_step(step + 1, int(getattr(pipe, "num_timesteps", 0)))
        between()
        return kwargs

    return callback


def _results(output: Any, kind: str) -> list[Any]:
    import numpy as np

    if kind == "image":
        return list(output.images)
    return [_bytes(np.asarray(frames)) for frames in output.frames]


def _bytes(frames: NDArray[Any]) -> NDArray[np.uint8]:
    import numpy as np

    if not np.isfinite(frames).all():
        raise ArithmeticError("the frames are not all numbers")
    levels: NDArray[np.uint8] = (frames.clip(0, 1) * 255).round().astype(np.uint8)
    return levels


def _check(made: Sequence[Any], work: Work, count: int) -> None:
    if len(made) != count:
        raise InputError(f"{work.model} made {len(made)} results, and {count} were asked for.")
    for size in _sizes(made):
        if work.size is not None and size != work.size:
            got, asked = "x".join(map(str, size)), "x".join(map(str, work.size))
            raise InputError(f"{work.model} makes {got} where {asked} is asked for; ask for that size.")


def _sizes(made: Sequence[Any]) -> Iterator[tuple[int, int]]:
    for one in made:
        yield one.size if isinstance(one, Image.Image) else (one.shape[2], one.shape[1])
