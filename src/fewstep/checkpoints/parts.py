"""Between a file's own layers and the model's: a fused matrix is cut into its parts, and put together again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.checkpoints.checkpoint import (
    Checkpoint,
    Get,
    Lazy,
    Make,
    as_stored,
    layer_outline,
    plain_outline,
    stack_rows,
    take_rows,
)
from fewstep.checkpoints.families import Place, Rule, from_ours, from_theirs
from fewstep.checkpoints.model import Expected, broken
from fewstep.checkpoints.stored import Group, Stored
from fewstep.errors import CheckpointError, InputError
from fewstep.numerics.quantized import Quantized

Shape = tuple[int, int]


@dataclass(frozen=True)
class StoredLayer:
    """A quantized linear layer as a file has it.

    Attributes:
        scheme: the format's own word for how it is quantized.
        names: of the tensors that it is made of.
        make: those tensors and the shape that the model gives it (None: as stored) -> the canonical matrix.
    """

    scheme: str
    names: tuple[str, ...]
    make: Callable[[Get, Shape | None], Quantized]


@dataclass(frozen=True)
class Parsed:
    """What a format's reader finds in the headers.

    Attributes:
        layers: path in the file's own names -> layer.
        plain: name in the file's own names -> name of the stored tensor.
        ignored: stored tensors that say something about the file and are no part of the model.
        facts: who made it.
        warnings: what is allowed but odd, one sentence each.
    """

    layers: Mapping[str, StoredLayer]
    plain: Mapping[str, str]
    ignored: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def assemble(stored: Stored, parsed: Parsed, model: Expected, rules: tuple[Rule, ...] | None) -> Checkpoint:
    """The canonical checkpoint; reads no numbers yet.

    Raises:
        CheckpointError: a name that the model does not have.
    """
    layers: dict[str, Make[Quantized]] = {}
    plain: dict[str, Make[Tensor]] = {}
    for path, layer in parsed.layers.items():
        place = _ours(stored.path, path, rules)
        rows, columns = _sides(stored.path, path, place, model, ".weight")
        whole = (sum(rows), columns)
        for part, (start, stop) in zip(place.ours, _bounds(rows), strict=True):
            layers[part] = partial(_layer, stored.path, path, layer, whole, place.swap, start, stop)
    for path, name in parsed.plain.items():
        place = _ours(stored.path, path, rules)
        if len(place.ours) == 1 and not place.swap:
            plain[place.ours[0] + place.leaf] = as_stored(name)
            continue
        rows, _ = _sides(stored.path, path, place, model, place.leaf)
        _has_rows(stored, path, name, sum(rows))
        for part, (start, stop) in zip(place.ours, _bounds(rows), strict=True):
            plain[part + place.leaf] = partial(_rows, name, place.swap, start, stop)
    return Checkpoint(
        model.model,
        model.config,
        Lazy(plain, stored.numbers, stored.shape),
        Lazy(layers, stored.numbers, stored.shape),
        parsed.facts,
    )


def _layer(
    file: Path, path: str, layer: StoredLayer, whole: Shape, swap: bool, start: int, stop: int, get: Get
) -> Quantized:
    try:
        q = layer.make(get, whole)
        if q.shape != whole:
            raise ValueError(f"it holds a matrix of {q.shape[0]}×{q.shape[1]}, the model has {whole[0]}×{whole[1]}")
        if tuple(q.scale.shape) != (grid := q.layout.grid(whole)):
            raise ValueError(f"its scales are {tuple(q.scale.shape)}, right would be {grid}")
        return _swapped(q) if swap else take_rows(q, start, stop)
    except (ValueError, RuntimeError, InputError) as error:
        raise broken(file, path, str(error).rstrip(".")) from None


def _swapped(q: Quantized) -> Quantized:
    half = q.shape[0] // 2
    return stack_rows([take_rows(q, half, 2 * half), take_rows(q, 0, half)])


def _rows(name: str, swap: bool, start: int, stop: int, get: Get) -> Tensor:
    tensor = get(name)
    return _swapped_plain(tensor) if swap else tensor[start:stop]


def _swapped_plain(tensor: Tensor) -> Tensor:
    return torch.cat(tensor.chunk(2)[::-1])


def _ours(file: Path, path: str, rules: tuple[Rule, ...] | None) -> Place:
    if rules is None:
        return Place(path, (path,), "")
    place = from_theirs(path, rules)
    if place is None:
        raise CheckpointError(
            f"{file}: the name {path} is none of the model's original names; no part may be left over."
        )
    return place


def _sides(file: Path, path: str, place: Place, model: Expected, leaf: str) -> tuple[list[int], int]:
    shapes = [model.shapes.get(part + leaf) for part in place.ours]
    if any(shape is None for shape in shapes):
        raise CheckpointError(f"{file}: {path} is no part of this {model.model}; its config says so.")
    return [shape[0] for shape in shapes if shape], (shapes[0] or (0,))[-1]


def _has_rows(stored: Stored, path: str, name: str, rows: int) -> None:
    if stored.shape(name).shape[0] != rows:
        raise CheckpointError(f"{stored.path}: {path} has {stored.shape(name).shape[0]} rows; the model's has {rows}.")


def _bounds(rows: list[int]) -> list[tuple[int, int]]:
    ends = [sum(rows[: i + 1]) for i in range(len(rows))]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def groups(
    checkpoint: Checkpoint,
    rules: tuple[Rule, ...] | None,
    pack: Callable[[str, Quantized], dict[str, Tensor]],
    prefix: str = "",
) -> list[Group]:
    """What a writer has to write: each layer packed by the format, each plain tensor under the file's own name.

    Raises:
        CheckpointError: parts that the file has as one matrix, and that can't be one.
    """
    found = []
    for theirs, ours, swap in _theirs(checkpoint.layers, checkpoint.layers, rules):

        def layer(one: Callable[[str], Quantized], theirs: str = theirs, ours: Any = ours, swap: bool = swap) -> Any:
            return pack(prefix + theirs, _joined(theirs, [one(path) for path in ours], swap))

        outline = layer(partial(layer_outline, checkpoint.layers))
        found.append(Group(outline, partial(layer, checkpoint.layers.__getitem__)))
    for theirs, ours, swap in _theirs(checkpoint.plain, checkpoint.layers, rules):

        def tensor(one: Callable[[str], Tensor], theirs: str = theirs, ours: Any = ours, swap: bool = swap) -> Any:
            return {prefix + theirs: _joined_plain([one(name) for name in ours], swap)}

        outline = tensor(partial(plain_outline, checkpoint.plain))
        found.append(Group(outline, partial(tensor, checkpoint.plain.__getitem__)))
    return found


def _theirs(
    names: Mapping[str, Any], layers: Mapping[str, Any], rules: tuple[Rule, ...] | None
) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    done: set[str] = set()
    for name in names:
        place = Place(name, (name,), "") if rules is None else from_ours(name, rules)
        if place is None:
            raise CheckpointError(f"The tensor {name} has no name in this model's original code; it can't be written.")
        if place.theirs + place.leaf in done:
            continue
        done.add(place.theirs + place.leaf)
        parts = tuple(part + place.leaf for part in place.ours)
        if any(part not in names for part in parts):
            raise CheckpointError(
                f"{', '.join(place.ours)} are one matrix in this format, so all or none of them must be quantized."
            )
        yield place.theirs + place.leaf, parts, place.swap


def _joined(theirs: str, parts: list[Quantized], swap: bool) -> Quantized:
    try:
        q = stack_rows(parts) if len(parts) > 1 else parts[0]
    except ValueError as error:
        raise CheckpointError(f"The parts of {theirs} are one matrix in this format, but {error}.") from None
    return _swapped(q) if swap else q


def _joined_plain(parts: list[Tensor], swap: bool) -> Tensor:
    tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
    return _swapped_plain(tensor) if swap else tensor
