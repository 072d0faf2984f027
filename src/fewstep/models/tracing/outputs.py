"""Where the prediction is in what a denoiser returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.models.tracing.inputs import squeezed_axes
from fewstep.models.tracing.leaves import Path, get, tensors


@dataclass(frozen=True)
class OutputForm:
    """Takes the prediction out of a denoiser's output.

    Attributes:
        path: keys to the tensor (or list of tensors, one a sample) in a tuple, list or output object.
        squeezed: axes of length 1 that it has and the scheduler's input has not.
        narrow: (dim, from the front, size) where only part of it is the prediction: learned variances and the tokens
            of condition images are dropped there.
    """

    path: Path
    as_list: bool
    squeezed: tuple[int, ...]
    narrow: tuple[int, bool, int] | None

    def take(self, output: Any) -> Tensor:
        found = get(output, self.path)
        whole: Tensor = torch.stack(list(found)) if self.as_list else found
        if self.squeezed:
            whole = whole.squeeze(self.squeezed)
        if self.narrow is None:
            return whole
        dim, front, size = self.narrow
        return whole.narrow(dim, 0 if front else whole.shape[dim] - size, size)


def find_outputs(output: Any, samples: int, shape: Sequence[int]) -> Iterator[OutputForm]:
    """Each form in which the output can hold predictions of (samples, *shape), the likeliest first."""
    for path, value in tensors(output):
        as_list = isinstance(value, list)
        if isinstance(value, list):
            if len({item.shape for item in value}) != 1:
                continue
            value = torch.stack(value)
        if value.dim() == 0 or value.shape[0] != samples:
            continue
        axes = squeezed_axes(value.shape, (samples, *shape))
        if axes is None:
            continue
        sizes = [size for axis, size in enumerate(value.shape) if axis not in axes][1:]
        for narrow in _narrows(sizes, shape):
            yield OutputForm(path, as_list, axes, narrow)


def _narrows(sizes: Sequence[int], shape: Sequence[int]) -> list[tuple[int, bool, int] | None]:
    dims = [d for d, (a, b) in enumerate(zip(sizes, shape, strict=True)) if a != b]
    if not dims:
        return [None]
    d = dims[0]
    if len(dims) > 1 or sizes[d] < shape[d]:
        return []
    return [(d + 1, front, shape[d]) for front in (True, False)]
