"""One decision for all ranks that compute one denoiser together: they hold parts of its tensors, or numbers that differ
in the last digit, and must not part ways."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn


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


def agreed(decision: bool, group: Any) -> bool:
    """What the first rank of a group decided. Every rank of the group must ask."""
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else "cpu"
    said = torch.tensor([decision], dtype=torch.uint8, device=device)
    dist.broadcast(said, group=group, group_src=0)
    return bool(said.item())
