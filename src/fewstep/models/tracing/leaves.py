"""Nested arguments (dicts, lists, tuples of tensors and plain values): walk them, copy them, compare them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Path = tuple[str | int, ...]  # the keys that lead to a value


def walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path, value) of everything inside that is not itself a dict, list or tuple."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from walk(inner, (*path, key))
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from walk(inner, (*path, i))
    else:
        yield path, value


def tensors(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor | list[Tensor]]]:
    """(path, value) of each tensor inside, and of each list of tensors as a whole after its members."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from tensors(inner, (*path, key))
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from tensors(inner, (*path, i))
        if value and all(isinstance(inner, Tensor) for inner in value):
            yield path, list(value)


def rebuild(value: Any, change: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """The same nesting with `change(path, value)` in the place of each value that `walk` gives."""
    if isinstance(value, Mapping):
        return {key: rebuild(inner, change, (*path, key)) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        inner = [rebuild(part, change, (*path, i)) for i, part in enumerate(value)]
        if isinstance(value, list):
            return inner
        return type(value)(*inner) if hasattr(value, "_fields") else tuple(inner)
    return change(path, value)


def get(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value


def put(value: Any, path: Path, new: Any) -> Any:
    """`value` with `new` at `path`; only the containers on the way are copied."""
    if not path:
        return new
    key, rest = path[0], path[1:]
    if isinstance(value, Mapping):
        return {**value, key: put(value[key], rest, new)}
    items = [put(inner, rest, new) if i == key else inner for i, inner in enumerate(value)]
    return items if isinstance(value, list) else tuple(items)


def without(args: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`args` without the argument at `path`; inside containers None takes its place."""
    if len(path) > 1:
        return dict(put(args, path, None))
    return {key: value for key, value in args.items() if key != path[0]}


def same(a: Any, b: Any) -> bool:
    """Equal to the bit: tensors in shape, dtype and every number, other values by ==."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a is b or (type(a) is type(b) and bool(a == b))


def name(path: Path) -> str:
    """For messages: `added_cond_kwargs.text_embeds`."""
    return ".".join(str(key) for key in path)


class Snapshots:
    """Copies of values as they are now. A tensor that was not written to since its last copy is not copied again."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Tensor, int, Tensor]] = {}

    def take(self, value: Any) -> Any:
        return rebuild(value, lambda _, leaf: self._copy(leaf) if isinstance(leaf, Tensor) else leaf)

    def _copy(self, tensor: Tensor) -> Tensor:
        if tensor.is_inference():  # these don't count their writes
            return tensor.detach().clone()
        seen = self._seen.get(id(tensor))  # the tensor is kept, so its id stays its own
        if seen is None or seen[1] != tensor._version:
            self._seen[id(tensor)] = seen = (tensor, tensor._version, tensor.detach().clone())
        return seen[2]
