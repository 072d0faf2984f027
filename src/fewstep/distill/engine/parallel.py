"""Many processes that train as one, each started by torchrun with a part of every step's batches.

    torchrun --nproc-per-node 8 train.py          # and in train.py:

    with found("ddp").joined() as parallel:
        train(distiller, batches, folder, settings, parallel=parallel)

"ddp" has the whole state on each process and averages gradients. "fsdp" has a part of it on each; see `sharding`.
The collectives here are the loop's: a method calls its modules through pipelines that were traced, so no wrapper
stands around them, and gradients are averaged when all of a step's batches are through.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fewstep.errors import FewstepError, InputError, MachineError, bad_value
from fewstep.techniques.parallel.processes import own_device, talking

Kind = Literal["none", "ddp", "fsdp"]
BUCKET = 25 * 2**20  # bytes that are averaged at once: many small messages would wait for one another
Value = TypeVar("Value")


@dataclass(frozen=True)
class Parallel:
    """This process among those that train together.

    Attributes:
        kind: what they share; see above.
        rank, size: which one it is, from 0, and how many there are.
        device: where its modules and batches belong.
        whole: fsdp only: gather the trained networks once an update instead of block by block, and leave the frozen
            ones whole. Costs memory, and lets processes call a network unequally often, as they do in a backward
            simulation that draws its exit step for each batch.
    """

    kind: Kind = "none"
    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    whole: bool = False

    @property
    def first(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0

    @contextmanager
    def joined(self) -> Iterator[Parallel]:
        """Inside the block the processes can talk; nothing happens where they can already, or there is but one."""
        if dist.is_initialized() or self.kind == "none":
            yield self
            return
        with talking(self.rank, self.size, self.device):
            yield self

    def same_start(self, modules: Iterable[nn.Module]) -> None:
        """Give all processes the first one's weights: heads and adapters start at random."""
        if self.size > 1:
            for module in modules:
                for tensor in (*module.parameters(), *module.buffers()):
                    dist.broadcast(tensor.detach(), 0)

    def same_buffers(self, modules: Iterable[nn.Module]) -> None:
        """Give all processes the first one's buffers, which forward passes may change."""
        if self.size > 1:
            for module in modules:
                for buffer in module.buffers():
                    dist.broadcast(buffer, 0)

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their mean over the processes; a missing one counts as 0, where there are several."""
        if self.kind != "ddp" or self.size == 1:
            return
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        for bucket in buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([one.reshape(-1) for one in bucket])
            dist.all_reduce(flat)
            flat /= self.size
            parts = torch.split(flat, [one.numel() for one in bucket])
            for one, part in zip(bucket, parts, strict=True):
                one.copy_(part.view_as(one))

    def mean(self, values: Tensor) -> Tensor:
        """Of each element over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def any(self, flag: bool) -> bool:
        """Whether it is so on any process."""
        if self.size == 1:
            return flag
        found = torch.tensor(float(flag))
        dist.all_reduce(found)
        return bool(found > 0)

    def from_first(self, value: Value) -> Value:
        """The first process's value."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, 0, device=torch.device("cpu"))
        chosen: Value = values[0]
        return chosen

    def agree(self, what: str) -> None:
        """Raise FewstepError on all processes where they are not at the same point, instead of waiting for ever."""
        if self.size == 1:
            return
        code = zlib.crc32(what.encode())
        ends = torch.tensor([code, -code])
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        if int(ends[0]) != -int(ends[1]):
            raise FewstepError(
                f"The processes no longer do the same: number {self.rank} comes to {what}, another one does not. "
                "With fsdp each must call each network equally often; Parallel(whole=True) lifts that."
            )

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


def buckets(tensors: Iterable[Tensor], size: int = BUCKET) -> Iterator[list[Tensor]]:
    """In order, as many as fit in `size` bytes (or one that does not), of one dtype and device."""
    kept: list[Tensor] = []
    filled = 0
    for tensor in tensors:
        same = not kept or (tensor.dtype, tensor.device) == (kept[0].dtype, kept[0].device)
        if kept and (not same or filled + tensor.nbytes > size):
            yield kept
            kept, filled = [], 0
        kept.append(tensor)
        filled += tensor.nbytes
    if kept:
        yield kept


def found(
    kind: Kind,
    processes: int | None = None,
    *,
    whole: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> Parallel:
    """This process by what torchrun told it: `WORLD_SIZE`, `RANK` and `LOCAL_RANK`; alone where it told nothing.

    `processes`: how many there must be.

    Raises:
        InputError: an unknown kind, or several processes that would not train together.
        MachineError: another number of processes, or a process without a GPU where others have one.
    """
    if kind not in get_args(Kind):
        raise InputError(bad_value("kind", "parallel training", f"one of {', '.join(get_args(Kind))}", kind))
    rank, size = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
    if processes is not None and processes != size:
        raise MachineError(
            f"This training was to have {processes} processes and has {size}: "
            f"start it with `torchrun --nproc-per-node {processes} …`."
        )
    if kind == "none" and size > 1:
        raise InputError(f"{size} processes were started, which do not train together: ask for ddp or fsdp.")
    return Parallel(kind, rank, size, own_device(environment), whole)
