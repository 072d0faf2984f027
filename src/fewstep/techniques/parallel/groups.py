"""Process groups, and the one way in which their parts become a whole. A group of None is this process alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def size_of(group: Any) -> int:
    return 1 if group is None else dist.get_world_size(group)


def rank_in(group: Any) -> int:
    return 0 if group is None else dist.get_rank(group)


def shares(items: int, parts: int) -> list[range]:
    """Stretches of so many items, as even as they go; the first ones have one more."""
    ends = [part * (items // parts) + min(part, items % parts) for part in range(parts + 1)]
    return [range(start, stop) for start, stop in pairwise(ends)]


def gathered(part: Tensor, lengths: Sequence[int], axis: int, group: Any) -> Tensor:
    """The parts of all processes along an axis, of these lengths: the same on all."""
    if group is None:
        return part
    # Not all backends gather parts of different lengths.
    longest, shape = max(lengths), list(part.shape)
    shape[axis] = longest - part.shape[axis]
    filled = torch.cat([part, part.new_zeros(shape)], axis).contiguous()
    whole = [torch.empty_like(filled) for _ in lengths]
    dist.all_gather(whole, filled, group=group)
    return torch.cat([one.narrow(axis, 0, length) for one, length in zip(whole, lengths, strict=True)], axis)


def same_enough(whole: Tensor, parts: Tensor) -> bool:
    """Whether what was computed in parts is what was computed whole, but for the order of sums."""
    near = (1e-4 if whole.dtype == torch.float32 else 1e-2) * float(whole.abs().max())
    return bool((whole.float() - parts.float()).abs().max() <= near)
