"""Less of a pipeline's own Python around its models, which a call of one or two steps feels.

Many times in a call a diffusers pipeline walks through every module of its models, to learn where they are and whether
hooks are on them, and it takes each prompt apart word by word, in search of textual inversions. What the walk finds
holds for the whole call: one at its start is enough. And a tokenizer without such inversions need not look for them.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import nn

from fewstep.machine import Machine
from fewstep.models.model import Model
from fewstep.techniques.base import Engaged, Stage, Technique

HOOKS = "offloading or a cache of diffusers has hooks on its models, and must be asked each time"


def hooked(module: nn.Module) -> bool:
    """Whether accelerate or diffusers has a hook on any part of a model."""
    return any("_hf_hook" in vars(part) or _registered(part) for part in module.modules())


def _registered(part: nn.Module) -> bool:
    registry = vars(part).get("_diffusers_hook")  # diffusers leaves empty ones behind
    return registry is not None and bool(registry.hooks)


def device_of(modules: Iterable[nn.Module]) -> torch.device | None:
    """Where a pipeline of these models computes when none is hooked: by diffusers' rule, the first that is no CPU."""
    tensors = (next(module.parameters(), None) for module in modules)
    devices = [tensor.device for tensor in tensors if tensor is not None]
    return next((device for device in devices if device.type not in ("cpu", "meta")), next(iter(devices), None))


def inverts(tokenizer: Any) -> bool:
    """Whether a word may stand for several vectors: diffusers' textual inversion adds WORD_1, WORD_2, … for it."""
    return any(word.endswith("_1") for word in tokenizer.get_added_vocab())


@dataclass
class Known:
    """What one walk at the start of a call found.

    Attributes:
        device: where the pipeline computes; None outside of a call, and where models have hooks.
        answered: how often, in the last call, it took the place of a walk or a search.
    """

    device: torch.device | None = None
    answered: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def during(self, modules: Collection[nn.Module]) -> Iterator[None]:
        self.answered.clear()
        self.device = None if any(map(hooked, modules)) else device_of(modules)
        try:
            yield
        finally:
            self.device = None


class Shortened(DiffusionPipeline):  # type: ignore[misc]
    """Stands before a pipeline's own class and answers what is known. `fewstep_known` is that pipeline's alone."""

    fewstep_known: ClassVar[Known]

    @property
    def _execution_device(self) -> torch.device:
        if device := self.fewstep_known.device:
            self.fewstep_known.answered["devices"] += 1
        return device or super()._execution_device

    def maybe_free_model_hooks(self) -> None:
        if self.fewstep_known.device is None:
            super().maybe_free_model_hooks()

    def maybe_convert_prompt(self, prompt: str | list[str], tokenizer: Any) -> Any:
        if inverts(tokenizer):
            return super().maybe_convert_prompt(prompt, tokenizer)
        self.fewstep_known.answered["prompts"] += 1
        return prompt


def shortened(pipe: Any, known: Known) -> type:
    """The class of `pipe` with `Shortened` before it, under its own name: `isinstance` and saving hold."""
    plain = type(pipe)

    @functools.wraps(plain.__call__)  # keeps the signature
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        with known.during(Model(self).modules.values()):
            return plain.__call__(self, *args, **kwargs)

    members = {"__call__": __call__, "__module__": plain.__module__, "__doc__": plain.__doc__, "fewstep_known": known}
    return type(plain.__name__, (Shortened, plain), members)


@dataclass(frozen=True)
class Host(Technique):
    """Spare a call the walks through its models and the search for textual inversions."""

    name: ClassVar[str] = "host"
    stage: ClassVar[Stage] = Stage.HOST
    claims: ClassVar[frozenset[str]] = frozenset({"pipeline.class"})

    def problems(self, model: Model, machine: Machine) -> list[str]:
        if not isinstance(model.pipe, DiffusionPipeline):
            return [f"Host shortens diffusers' own pipelines, and {type(model.pipe).__name__} is none."]
        return [f"Host has nothing to spare: {HOOKS}."] if any(map(hooked, model.modules.values())) else []

    def apply(self, model: Model, machine: Machine) -> Engaged:
        pipe, known, plain = model.pipe, Known(), type(model.pipe)
        facts = {"pipeline": plain.__name__, "answered": known.answered}
        pipe.__class__ = shortened(pipe, known)
        return Engaged(self.name, facts, partial(setattr, pipe, "__class__", plain), warnings=partial(_warnings, known))


def _warnings(known: Known) -> list[str]:
    return [] if known.answered["devices"] else [f"Host spared nothing in the last call: {HOOKS}."]
