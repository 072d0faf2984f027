"""One decision for all ranks that compute one denoiser together: they hold parts of its tensors, or numbers that differ
in the last digit, and must not part ways."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def group_of(denoiser: nn.Module) -> Any:
    """The process group over which a denoiser is spread, by `Parallel` or by diffusers (`enable_parallelism`); None
    where it is not."""
    if (own := getattr(denoiser, "fewstep_group", None)) is not None:
        return own
    config = getattr(denoiser, "_parallel_config", None)
    for name in ("context_parallel_config", "tensor_parallel_config"):
        part = getattr(config, name, None)
        mesh = getattr(part, "_flattened_mesh", None) or getattr(part, "_mesh", None)
        if mesh is not None:
            return mesh.get_group()
    return None


def of_first(values: Tensor, group: Any) -> Tensor:
    """The values of a group's first rank, on all of them; of a process alone, its own. Every rank must ask."""
    if group is None:
        return values
    values = values.contiguous()
    dist.broadcast(values, group=group, group_src=0)
    return values


def agreed(decision: bool, group: Any) -> bool:
    """What the first rank of a group decided, as in `of_first`."""
    if group is None:
        return decision
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else "cpu"
    return bool(of_first(torch.tensor([decision], dtype=torch.uint8, device=device), group).item())
