"""The canonical checkpoint: a diffusers model's tensors by their logical names, read only when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from fewstep.numerics.quantized import Quantized

T = TypeVar("T")
Get = Callable[[str], Tensor]
"""A stored tensor by its name: the numbers, or, where only the outline is wanted, its shape on the meta device."""
Make = Callable[[Get], T]


def as_stored(name: str) -> Make[Tensor]:
    """The stored tensor of that name, as it is."""
    return lambda get: get(name)


class Lazy(Mapping[str, T], Generic[T]):
    """Values that are made from stored tensors when they are asked for, and forgotten again.

    `outline(name)` makes the same on the meta device, from headers alone.
    """

    def __init__(self, makes: Mapping[str, Make[T]], numbers: Get, shapes: Get) -> None:
        self._makes, self._numbers, self._shapes = makes, numbers, shapes

    def __getitem__(self, name: str) -> T:
        return self._makes[name](self._numbers)

    def outline(self, name: str) -> T:
        return self._makes[name](self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._makes

    def __iter__(self) -> Iterator[str]:
        return iter(self._makes)

    def __len__(self) -> int:
        return len(self._makes)


@dataclass(frozen=True)
class Checkpoint:
    """A diffusers model, some of whose linear layers are quantized.

    Attributes:
        model: name of its diffusers class.
        config: what `config.json` says of the model, without `quantization_config`.
        plain: tensors that stay as they are, by the model's own names.
        layers: path of a linear layer -> its weight.
        facts: who made it, JSON values: producer, versions, the command.
    """

    model: str
    config: Mapping[str, Any]
    plain: Mapping[str, Tensor]
    layers: Mapping[str, Quantized]
    facts: Mapping[str, Any] = field(default_factory=dict)


def on_meta(q: Quantized) -> Quantized:
    """The same without its numbers."""
    tensors = {f.name: getattr(q, f.name) for f in fields(q) if isinstance(getattr(q, f.name), Tensor)}
    return replace(q, **{name: tensor.to("meta") for name, tensor in tensors.items()})


def layer_outline(layers: Mapping[str, Quantized], path: str) -> Quantized:
    """A layer without its numbers; nothing is read for it where the mapping is lazy."""
    return layers.outline(path) if isinstance(layers, Lazy) else on_meta(layers[path])


def plain_outline(plain: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor without its numbers."""
    return plain.outline(name) if isinstance(plain, Lazy) else plain[name].to("meta")


def take_rows(q: Quantized, start: int, stop: int) -> Quantized:
    """Rows `start` to `stop` of a matrix, with their scales.

    Raises:
        ValueError: a block of scales would be cut.
    """
    high = q.layout.block[0]
    if not high:  # one scale for all rows
        return replace(q, codes=q.codes[start:stop])
    if start % high or stop % high:
        raise ValueError(f"its rows {start} to {stop} cut a block of {high} rows")
    return replace(q, codes=q.codes[start:stop], scale=q.scale[start // high : stop // high])


def stack_rows(parts: list[Quantized]) -> Quantized:
    """Matrices one below the other, as one with common scales; the inverse of `take_rows`.

    Raises:
        ValueError: they are not quantized alike, or don't share the scales that a single matrix has once.
    """
    first = parts[0]
    for part in parts[1:]:
        if part.layout != first.layout:
            raise ValueError(f"they are quantized differently ({first.layout} and {part.layout})")
        for name in ("global_scale", "input_scale", *(() if first.layout.block[0] else ("scale",))):
            if not _same(getattr(first, name), getattr(part, name)):
                raise ValueError(f"they don't share one {name.replace('_', ' ')}")
    scale = first.scale if not first.layout.block[0] else stack([part.scale for part in parts])
    return replace(first, codes=stack([part.codes for part in parts]), scale=scale)


def stack(tensors: list[Tensor]) -> Tensor:
    """`torch.cat` along rows by bytes: not every 8-bit type has one of its own."""
    if tensors[0].element_size() > 1:
        return torch.cat(tensors)
    return torch.cat([tensor.contiguous().view(torch.uint8) for tensor in tensors]).view(tensors[0].dtype)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.is_meta or b.is_meta or (a.shape == b.shape and bool((a.float() == b.float()).all()))
