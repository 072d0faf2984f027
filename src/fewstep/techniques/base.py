"""The one contract that every trick follows: a frozen value that can be checked, applied and undone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any, ClassVar

from fewstep.errors import InputError
from fewstep.machine import Machine
from fewstep.models.model import Model


class Stage(IntEnum):
    """When a technique is applied. The order comes from here, never from the caller."""

    WEIGHTS = 0
    QUANTIZE = 1
    SHARD = 2
    ATTENTION = 3
    CACHE = 4
    COMPILE = 5
    HOST = 6


def _nothing() -> None:
    """What a technique without state does between calls."""


def _no_call(call: Mapping[str, Any]) -> None:
    """What a technique does before a call that it need not know."""


def _no_warnings() -> list[str]:
    return []


@dataclass
class Engaged:
    """What a technique really did to one pipeline.

    Attributes:
        name: the technique's.
        facts: what can be counted (layers quantized, steps reused, bytes saved, …), JSON values only; filled while
            running.
        undo: put everything back, to the bit. Called once, in the reverse order of the applying.
        call_defaults: keyword arguments for the pipeline's call where its caller gives none. They go before the
            pipeline's own.
        before_call: told the call's keyword arguments before each call; may run the pipeline itself, to calibrate.
        reset: forget the state of the last request. Called before each call, after `before_call`, and after it.
        warnings: what went wrong in the last call without an error, one sentence each: nothing skipped, nothing
            compiled.
    """

    name: str
    facts: dict[str, Any]
    undo: Callable[[], None]
    call_defaults: Mapping[str, Any] = field(default_factory=dict)
    before_call: Callable[[Mapping[str, Any]], None] = _no_call
    reset: Callable[[], None] = _nothing
    warnings: Callable[[], list[str]] = _no_warnings


@dataclass(frozen=True)
class Technique(ABC):
    """One trick as a frozen value. The fields of a subclass are what a recipe may say about it.

    A technique that matches nothing (no layer, no block) must not be applied in silence: `problems` names it, or, where
    only a run can tell, `Engaged.warnings` does.

    Raises:
        InputError: a field is not what it must be; one sentence for each such field.
    """

    name: ClassVar[str]
    stage: ClassVar[Stage]
    claims: ClassVar[frozenset[str]]
    """What it needs for itself, like `linear.weight` or `denoiser.forward`. Two techniques with one claim conflict."""

    def __post_init__(self) -> None:
        if faults := self.faults():
            raise InputError(" ".join(faults))

    @property
    def claimed(self) -> frozenset[str]:
        """Its claims, with its fields as they are."""
        return self.claims

    def faults(self) -> list[str]:
        """What is wrong with the values of the fields, one sentence each. The subclass's to fill."""
        return []

    @abstractmethod
    def problems(self, model: Model, machine: Machine) -> list[str]:
        """Why this can't be applied here, one sentence each; empty when it can. Changes nothing."""

    @abstractmethod
    def apply(self, model: Model, machine: Machine) -> Engaged:
        """Change the pipeline in place. The caller has seen `problems` come back empty."""

    def wants(self, beside: Collection[str], machine: Machine) -> list[str]:
        """What it will not bring for want of other techniques than those beside it, by name: one sentence each, told as
        warnings when it is applied."""
        return []

    def given(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def strings(value: object) -> bool:
    """Whether a field's value is a tuple of strings."""
    return isinstance(value, tuple) and all(isinstance(item, str) for item in value)


def undo_all(steps: list[Callable[[], None]]) -> Callable[[], None]:
    """One undo of many, the last one first."""

    def undo() -> None:
        while steps:
            steps.pop()()

    return undo
