"""Conditions as plain tensors: taken apart to be stored beside the paths, put together again for a batch.

A condition is whatever a denoiser takes as `cond`: None, a tensor of shape (batch, …), or an object of nested mappings,
lists and dataclasses with tensors in them and a method `slice(indices)`, like `models.trace.Cond`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

Leaves = dict[str, Tensor]


def take(cond: Any, indices: Sequence[int]) -> Any:
    """The condition of some samples of a batch."""
    if cond is None:
        return None
    return cond[list(indices)] if isinstance(cond, Tensor) else cond.slice(indices)


def leaves(cond: Any) -> Leaves:
    """Every tensor in it, by its path."""
    return {path: value for path, value in _walk(cond, "") if isinstance(value, Tensor)}


def batched(cond: Any) -> Leaves:
    """Those of its tensors that have a row for each sample: they grow when a sample is taken twice."""
    once, twice = leaves(take(cond, [0])), leaves(take(cond, [0, 0]))
    return {path: value for path, value in leaves(cond).items() if once[path].shape != twice[path].shape}


def rebuild(template: Any, given: Mapping[str, Tensor], path: str = "") -> Any:
    """`template` with the tensors that `given` names in the place of its own."""
    if isinstance(template, Tensor):
        return given.get(path, template)
    if isinstance(template, Mapping):
        return {name: rebuild(value, given, f"{path}.{name}") for name, value in template.items()}
    if isinstance(template, list | tuple):
        return type(template)(rebuild(value, given, f"{path}.{i}") for i, value in enumerate(template))
    if is_dataclass(template) and not isinstance(template, type):
        names = [f.name for f in fields(template) if f.init]
        return replace(template, **{n: rebuild(getattr(template, n), given, f"{path}.{n}") for n in names})
    return template


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    inner: Iterable[tuple[str, Any]]
    if isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, list | tuple):
        inner = ((str(i), one) for i, one in enumerate(value))
    elif is_dataclass(value) and not isinstance(value, type):
        inner = ((f.name, getattr(value, f.name)) for f in fields(value))
    else:
        yield path, value
        return
    for name, one in inner:
        yield from _walk(one, f"{path}.{name}")
