"""How x_t stands in a denoiser's arguments: which one it is, scaled, repeated for each branch, joined with others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.models.tracing.leaves import Path, tensors


@dataclass(frozen=True)
class Scaling:
    """What x_t is multiplied with before the network sees it: 1, or 1/√(sigma² + data) (arXiv 2206.00364, table 1)."""

    data: float | None = None  # sigma_data², None for no scaling

    def __call__(self, x_t: Tensor, t: Tensor | float) -> Tensor:
        """x_t as the network sees it; divided, not multiplied, to be the scheduler's own to the bit."""
        if self.data is None:
            return x_t
        if not isinstance(t, Tensor) or t.dim() == 0:
            return x_t / self.divisor(float(t))
        divisor = (t.double() ** 2 + self.data).sqrt().to(x_t.device, x_t.dtype)
        return x_t / divisor.view(-1, *[1] * (x_t.dim() - 1))

    def divisor(self, t: float) -> float:
        return 1.0 if self.data is None else math.sqrt(t * t + self.data)

    @classmethod
    def fit(cls, times: Sequence[float], scales: Sequence[float], tolerance: float) -> Scaling | None:
        """The scaling that gives `scales` at `times`; None when neither form does."""
        data = [1 / (scale * scale) - t * t for t, scale in zip(times, scales, strict=True)]
        # At the smallest time the difference of squares has lost the fewest digits.
        smallest = min(range(len(times)), key=lambda i: times[i])
        for candidate in (cls(), cls(round(data[smallest], 4))):
            if candidate.data is not None and candidate.data < 0:
                continue
            if all(abs(s * candidate.divisor(t) - 1) <= tolerance for t, s in zip(times, scales, strict=True)):
                return candidate
        return None


@dataclass(frozen=True)
class Joined:
    """x_t fills only part of the argument along `dim`; the rest is a condition (an image's latents, a mask)."""

    dim: int
    size: int  # of x_t along dim
    first: bool  # x_t comes before the rest

    def part(self, whole: Tensor) -> Tensor:
        return whole.narrow(self.dim, 0 if self.first else whole.shape[self.dim] - self.size, self.size)

    def rest(self, whole: Tensor) -> Tensor:
        return whole.narrow(self.dim, self.size if self.first else 0, whole.shape[self.dim] - self.size)

    def join(self, part: Tensor, rest: Tensor) -> Tensor:
        return torch.cat([part, rest] if self.first else [rest, part], dim=self.dim)


HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class InputForm:
    """Builds the argument that holds x_t.

    Attributes:
        path: where the argument is; `rest_name` is where a condition keeps what is joined to x_t.
        repeats: how often the batch is repeated, once for each branch of the call.
        squeezed: the axes of length 1 that the argument has and x_t has not.
        as_list: the argument is a list with one tensor a sample.
        dtype: the argument's, None where it is x_t's own and not of 16 bits.
    """

    path: Path
    repeats: int
    squeezed: tuple[int, ...]
    as_list: bool
    dtype: torch.dtype | None
    joined: Joined | None
    scaling: Scaling = Scaling()

    @property
    def rest_name(self) -> str:
        return ".".join(str(key) for key in (*self.path, "rest"))

    def build(self, x_t: Tensor, t: Tensor | float, rest: Tensor | None, dtype: torch.dtype | None) -> Any:
        """The argument in `dtype`; None: in x_t's own."""
        x = self.scaling(x_t, t)
        if dtype is not None:
            x = x.to(dtype)
        if self.repeats > 1:
            x = torch.cat([x] * self.repeats)
        if self.joined is not None and rest is not None:
            x = self.joined.join(x, rest)
        for axis in self.squeezed:
            x = x.unsqueeze(axis)
        return list(x.unbind()) if self.as_list else x

    def flat(self, value: Any) -> Tensor:
        """The argument as one tensor of x_t's axes."""
        whole = torch.stack(value) if self.as_list else value
        return whole.squeeze(self.squeezed) if self.squeezed else whole

    def rest(self, value: Any) -> Tensor | None:
        return None if self.joined is None else self.joined.rest(self.flat(value))


def find_inputs(args: Mapping[str, Any], x_t: Tensor) -> Iterator[tuple[InputForm, float]]:
    """Each argument that holds x_t, as (form, scale)."""
    taken: list[Path] = []
    for path, value in tensors(args):
        if any(other[: len(path)] == path for other in taken):
            continue  # a list, one member of which is x_t
        found = _match(path, value, x_t)
        if found is not None:
            taken.append(path)
            yield found


def squeezed_axes(shape: Sequence[int], target: Sequence[int]) -> tuple[int, ...] | None:
    """Axes of length 1 to drop from `shape` to get the axes of `target`, sizes aside; None when that can't be."""
    surplus = len(shape) - len(target)
    if surplus == 0:
        return ()
    ones = [axis for axis in range(1, len(shape)) if shape[axis] == 1]
    for start in range(len(ones) - surplus + 1) if surplus > 0 else ():
        axes = tuple(ones[start : start + surplus])
        left = [size for axis, size in enumerate(shape) if axis not in axes]
        if sum(a != b for a, b in zip(left[1:], target[1:], strict=True)) <= 1:
            return axes
    return None


def _match(path: Path, value: Tensor | list[Tensor], x_t: Tensor) -> tuple[InputForm, float] | None:
    as_list = isinstance(value, list)
    if isinstance(value, list):
        if len({item.shape for item in value}) != 1:
            return None
        value = torch.stack(value)
    if not value.is_floating_point() or value.dim() < x_t.dim() or value.shape[0] % x_t.shape[0]:
        return None
    axes = squeezed_axes(value.shape, x_t.shape)
    if axes is None:
        return None
    whole = value.squeeze(axes) if axes else value
    repeats = whole.shape[0] // x_t.shape[0]
    for joined in _joins(whole.shape, x_t.shape):
        scale = _scale(joined.part(whole) if joined else whole, x_t, repeats)
        if scale is not None:
            dtype = None if value.dtype == x_t.dtype and value.dtype not in HALF else value.dtype
            return InputForm(path, repeats, axes, as_list, dtype, joined), scale
    return None


def _joins(whole: Sequence[int], part: Sequence[int]) -> list[Joined | None]:
    dims = [d for d in range(1, len(part)) if whole[d] != part[d]]
    if not dims:
        return [None]
    d = dims[0]
    if len(dims) > 1 or whole[d] < part[d]:
        return []
    return [Joined(d, part[d], first) for first in (True, False)]


def _scale(value: Tensor, x_t: Tensor, repeats: int) -> float | None:
    """c where `value` is c·x_t, `repeats` times over; None where it is not."""
    x = x_t.double().repeat(repeats, *[1] * (x_t.dim() - 1))
    wide = value.double()
    norm = float((x * x).sum())
    if norm == 0:
        return None
    scale = float((wide * x).sum()) / norm
    tolerance = 4 * torch.finfo(value.dtype).eps * float(wide.abs().max())
    return scale if float((wide - scale * x).abs().max()) <= tolerance else None
