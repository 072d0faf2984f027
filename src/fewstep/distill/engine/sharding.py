"""Fully sharded training (FSDP2): of each weight, average and optimizer state, every process holds a part.

A block's weights are gathered when it runs and let go after it. Modules stay in place, so traced pipelines go on
working over them, but for good: what was sharded stays so until the process ends.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from fewstep.distill.engine.parallel import Parallel
from fewstep.errors import InputError
from fewstep.layout import Layout
from fewstep.models.blocks import find_blocks
from fewstep.techniques.parallel.processes import device_mesh


def check_whole(modules: Mapping[str, nn.Module]) -> None:
    """Raises InputError where one of these modules is sharded already."""
    for name, module in modules.items():
        if isinstance(module, FSDPModule):
            raise InputError(f"The {name!r} of this method is sharded already: make the method anew to train again.")


def shard(modules: Mapping[str, nn.Module], parallel: Parallel) -> None:
    """Shard these modules in place, each by its repeated blocks and the rest.

    Raises:
        InputError: one is a list of networks, without a call in which its weights could be gathered.
    """
    for name, module in modules.items():
        if isinstance(module, nn.ModuleList):
            raise InputError(f"The {name!r} of this method is several networks and can't be sharded: take ddp.")
    mesh = device_mesh(Layout(data=parallel.size), parallel.device.type)["data"]
    for name, module in modules.items():
        for block in find_blocks(module):
            fully_shard(block.module, mesh=mesh)
        sharded = fully_shard(module, mesh=mesh)
        if parallel.whole:
            sharded.set_reshard_after_forward(False)
            sharded.set_reshard_after_backward(False)
        else:  # asked before the weights are gathered, or with unequal calls processes would wait for ever
            module.register_forward_pre_hook(partial(_agree, parallel, f"a call of {name!r}"), prepend=True)


def _agree(parallel: Parallel, what: str, module: nn.Module, args: Any) -> None:
    parallel.agree(what)


@contextmanager
def gathered(modules: Iterable[nn.Module], parallel: Parallel) -> Iterator[None]:
    """Around the forward and backward passes of an update: afterwards parameters are parts, which optimizers take."""
    modules = list(modules)
    if parallel.kind == "fsdp" and parallel.whole:
        for part in _sharded(modules):
            part.unshard()
    yield
    if parallel.kind == "fsdp":
        release(modules)


def release(modules: Iterable[nn.Module]) -> None:
    """Let go of weights that a forward pass gathered and kept: FSDP keeps those of the root."""
    for part in _sharded(modules):
        part.reshard()


def _sharded(modules: Iterable[nn.Module]) -> Iterator[FSDPModule]:
    for module in modules:
        for part in module.modules():
            if isinstance(part, FSDPModule):
                yield part


def hollow(module: nn.Module) -> nn.Module:
    """A copy without weights, for `filled`; buffers are kept."""
    blank = copy.deepcopy(module)
    for p in blank.parameters():
        p.data = p.data.new_empty(0)
    return blank


@torch.no_grad()
def filled(blank: nn.Module, module: nn.Module) -> nn.Module:
    """`blank`, which becomes `module` as it was before it was sharded, on the CPU. All processes must call it."""
    release([module])
    for p, source in zip(blank.parameters(), module.parameters(), strict=True):
        p.data = (source.full_tensor() if isinstance(source, DTensor) else source.detach()).cpu()
    for kept, buffer in zip(blank.buffers(), module.buffers(), strict=True):
        kept.data = buffer.detach().cpu().clone()
    return blank


def placed(full: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that this process holds, where `like` is sharded and of its shape."""
    if not isinstance(like, DTensor) or full.shape != like.shape:
        return full
    full = full.to(like.device)
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)
