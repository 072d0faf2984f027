"""The conditions of a denoiser: what a prompt became, per guidance branch, as the denoiser's own arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import InputError
from fewstep.models.tracing.leaves import Path, get, rebuild, walk

Kwargs = Mapping[str, Any]
LIST = -1  # the axis of a list that holds one value a sample
# Position ids and rotary tables of two dimensions are (tokens, d), although `tokens` may happen to be the batch size.
SHARED_IDS = frozenset({"txt_ids", "img_ids", "image_rotary_emb", "rotary_emb", "freqs_cis"})


@dataclass(frozen=True)
class Cond:
    """Keyword arguments of the denoiser, branch by branch, without x_t and the timestep.

    Attributes:
        branches: branch name (cond, uncond, …) -> argument name -> value.
        axes: path of an argument -> the dimension of its tensor that runs over samples (`LIST` for a list of them).
            What has no axis is shared by all samples.
        batch: number of samples.
    """

    branches: Mapping[str, Kwargs]
    axes: Mapping[Path, int]
    batch: int
    _merged: dict[tuple[tuple[str, ...], int], dict[str, Any]] = field(default_factory=dict, compare=False, repr=False)

    def merged(self, names: tuple[str, ...], batch: int) -> dict[str, Any]:
        """Arguments of one denoiser call that runs these branches one after another along the batch.

        Kept, so that a sampling loop pays for it once: don't write into it.

        Raises:
            InputError: `batch` samples are asked of a condition that has another number of them, and not one.
        """
        found = self._merged.get((names, batch))
        if found is None:
            whole = self if batch == self.batch else self._repeated(batch)
            found = whole._join([whole.branches[name] for name in names])
            self._merged[(names, batch)] = found
        return found

    def slice(self, indices: Sequence[int]) -> Cond:
        """The conditions of some samples, in the order of `indices`."""
        return self._each(lambda value, axis: _take(value, axis, indices), len(indices))

    def to(self, *args: Any, **kwargs: Any) -> Cond:
        """Floating-point tensors moved or cast as by `Tensor.to`; whole numbers only change their device."""

        device = torch.empty(0, device=self._device()).to(*args, **kwargs).device

        def move(_: Path, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return leaf.to(*args, **kwargs) if leaf.is_floating_point() else leaf.to(device)

        return Cond({name: rebuild(kwargs_, move) for name, kwargs_ in self.branches.items()}, self.axes, self.batch)

    @staticmethod
    def cat(conds: Sequence[Cond]) -> Cond:
        """One condition over all samples.

        Raises:
            InputError: they come from different calls: other branches or arguments, or texts of other lengths.
        """
        first = conds[0]
        if any(c.branches.keys() != first.branches.keys() or c.axes != first.axes for c in conds):
            raise InputError("Conditions can be joined only when they have the same branches and arguments.")
        branches = {name: first._join([c.branches[name] for c in conds]) for name in first.branches}
        return Cond(branches, first.axes, sum(c.batch for c in conds))

    def _device(self) -> torch.device | None:
        leaves = (leaf for kwargs in self.branches.values() for _, leaf in walk(kwargs))
        return next((leaf.device for leaf in leaves if isinstance(leaf, Tensor)), None)

    def _repeated(self, batch: int) -> Cond:
        if self.batch != 1:
            raise InputError(f"A condition of {self.batch} samples does not fit {batch} samples.")
        return self.slice([0] * batch)

    def _each(self, change: Callable[[Any, int], Any], batch: int) -> Cond:
        branches = {name: _on_axes(kwargs, self.axes, change) for name, kwargs in self.branches.items()}
        return Cond(branches, self.axes, batch)

    def _join(self, parts: Sequence[Kwargs]) -> dict[str, Any]:
        if len(parts) == 1:
            return dict(parts[0])

        def join(path: Path, axis: int) -> Any:
            values = [get(part, path) for part in parts]
            if axis == LIST:
                return [item for value in values for item in value]
            return _cat(values, axis, path)

        return _on_paths(parts[0], self.axes, join)


def axes_of(args: Kwargs, samples: int) -> dict[Path, int]:
    """Which values run over the samples of a recorded call (branches × batch of them), and along which dimension."""
    axes: dict[Path, int] = {}
    _find_axes(args, (), samples, axes)
    return axes


def _find_axes(value: Any, path: Path, samples: int, axes: dict[Path, int]) -> None:
    if isinstance(value, Tensor):
        axis = _axis(value, path, samples)
        if axis is not None:
            axes[path] = axis
    elif isinstance(value, list) and len(value) == samples and all(isinstance(v, (Tensor, list, tuple)) for v in value):
        axes[path] = LIST
    elif isinstance(value, (Mapping, list, tuple)):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            _find_axes(inner, (*path, key), samples, axes)


def _axis(value: Tensor, path: Path, samples: int) -> int | None:
    if value.dim() == 0 or (value.dim() == 2 and not SHARED_IDS.isdisjoint(path)):
        return None
    if value.shape[0] == samples:
        return 0
    # Stacks over layers have the samples second. With one sample a 1 there says nothing.
    return 1 if samples > 1 and value.dim() > 2 and value.shape[1] == samples else None


def spread(args: Kwargs, axes: Mapping[Path, int], batch: int) -> dict[str, Any]:
    """Arguments given once for all samples (a negative prompt), where others are given for each: repeated to fit."""

    def repeat(value: Any, axis: int) -> Any:
        if axis == LIST:
            return list(value) * batch if len(value) == 1 else value
        return value.repeat_interleave(batch, dim=axis) if value.shape[axis] == 1 else value

    return _on_axes(args, axes, repeat)


def split(args: Kwargs, axes: Mapping[Path, int], branches: int) -> list[dict[str, Any]]:
    """The arguments of a call that ran `branches` branches along the batch, apart."""
    if branches == 1:
        return [dict(args)]

    samples = next(len(get(args, path)) if axis == LIST else get(args, path).shape[axis] for path, axis in axes.items())
    each = samples // branches
    return [samples_of(args, axes, i * each, (i + 1) * each) for i in range(branches)]


def samples_of(args: Kwargs, axes: Mapping[Path, int], start: int, stop: int) -> dict[str, Any]:
    """The arguments of a call for some of its samples alone."""

    def cut(value: Any, axis: int) -> Any:
        return value[start:stop] if axis == LIST else value.narrow(axis, start, stop - start)

    return _on_axes(args, axes, cut)


def _on_axes(kwargs: Kwargs, axes: Mapping[Path, int], change: Callable[[Any, int], Any]) -> dict[str, Any]:
    return _on_paths(kwargs, axes, lambda path, axis: change(get(kwargs, path), axis))


def _on_paths(kwargs: Kwargs, axes: Mapping[Path, int], change: Callable[[Path, int], Any]) -> dict[str, Any]:
    def visit(value: Any, path: Path) -> Any:
        if path in axes:
            return change(path, axes[path])
        if isinstance(value, Mapping):
            return {key: visit(inner, (*path, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [visit(inner, (*path, i)) for i, inner in enumerate(value)]
        if isinstance(value, tuple) and not hasattr(value, "_fields"):
            return tuple(visit(inner, (*path, i)) for i, inner in enumerate(value))
        return value

    return {key: visit(value, (key,)) for key, value in kwargs.items()}


def _take(value: Any, axis: int, indices: Sequence[int]) -> Any:
    if axis == LIST:
        return [value[i] for i in indices]
    return value.index_select(axis, torch.as_tensor(indices, dtype=torch.long, device=value.device))


def _cat(values: Sequence[Tensor], axis: int, path: Path) -> Tensor:
    try:
        return torch.cat(list(values), dim=axis)
    except RuntimeError:
        shapes = ", ".join(str(tuple(value.shape)) for value in values)
        raise InputError(
            f"The conditions' {'.'.join(map(str, path))} have shapes {shapes}: "
            "make them in one call, so that they are padded alike."
        ) from None
