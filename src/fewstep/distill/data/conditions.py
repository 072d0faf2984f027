"""Conditions as plain tensors: taken apart to be stored beside the paths, put together again for a batch.

A condition is what a denoiser takes as `cond`: None, a tensor of shape (batch, …), or a traced pipeline's `Cond`. Its
rows are the tensors that differ from sample to sample, samples first; what all samples share comes from a template.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import InputError
from fewstep.models.load import for_each
from fewstep.models.trace import TracedDenoiser
from fewstep.models.tracing.cond import LIST, Cond
from fewstep.models.tracing.leaves import Path, get, put

Rows = dict[str, Tensor]
Condition = Callable[[Sequence[Any]], Any]  # some prompts -> the condition for them


def rows(cond: Any) -> Rows:
    """Its tensors of shape (batch, …) by name.

    Raises:
        InputError: a condition of another type, or with a list of tensors of different shapes.
    """
    if cond is None:
        return {}
    if isinstance(cond, Tensor):
        return {"": cond}
    _check(cond)
    return {
        name: _rows_first(get(cond.branches[branch], path), axis, name) for name, branch, path, axis in _places(cond)
    }


def rebuild(template: Any, given: Mapping[str, Tensor]) -> Any:
    """The condition with these rows; what they do not hold is the template's. Dtypes are the template's too."""
    if template is None:
        return None
    if isinstance(template, Tensor):
        return given[""].to(template.dtype)
    _check(template)
    branches: dict[str, Any] = dict(template.branches)
    for name, branch, path, axis in _places(template):
        value = given[name]
        like = get(template.branches[branch], path)
        back = list(value.to(like[0].dtype)) if axis == LIST else value.to(like.dtype).movedim(0, axis)
        branches[branch] = put(branches[branch], path, back)
    return Cond(branches, template.axes, len(next(iter(given.values()))) if given else template.batch)


def prompted(traced: TracedDenoiser, **call: Any) -> Condition:
    """Prompts -> the conditions of the traced call, with them and these arguments in the place of its own."""
    negative = {name: text for name, text in {**traced.call, **call}.items() if name.startswith("negative_prompt")}

    def condition(prompts: Sequence[Any]) -> Cond:
        each = {name: for_each(text, list(prompts)) for name, text in negative.items()}
        return traced.condition(**{**call, **each, "prompt": list(prompts)})

    return condition


def of(condition: Condition, prompts: Sequence[Any]) -> tuple[Any, Rows]:
    """What `condition` gives for these prompts, and its rows.

    One prompt is asked for twice: from a single sample a trace can't tell which tensors have a row for each.
    """
    if len(prompts) > 1:
        cond = condition(prompts)
        return cond, rows(cond)
    pair = template_of(condition, prompts)
    once = {name: value[:1] for name, value in rows(pair).items()}
    return rebuild(pair, once), once


def template_of(condition: Condition, prompts: Sequence[Any]) -> Any:
    """A condition of two samples, to rebuild others from."""
    return condition(list(islice(cycle(prompts), 2)))


def _places(cond: Cond) -> Iterator[tuple[str, str, Path, int]]:
    """(name, branch, path, axis) of everything that has a row for each sample."""
    for branch in cond.branches:
        for path, axis in cond.axes.items():
            yield ".".join((branch, *map(str, path))), branch, path, axis


def _rows_first(value: Any, axis: int, name: str) -> Tensor:
    if axis != LIST:
        tensor: Tensor = value.movedim(axis, 0)
        return tensor
    if any(not isinstance(one, Tensor) or one.shape != value[0].shape for one in value):
        raise InputError(
            f"The conditions' {name} differ in shape from prompt to prompt, so they can't be stored together."
        )
    return torch.stack(list(value))


def _check(cond: Any) -> None:
    if not isinstance(cond, Cond):
        raise InputError(
            f"A condition must be None, a tensor or a traced Cond to be stored. Got {type(cond).__name__}."
        )
