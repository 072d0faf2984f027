"""The processes that torchrun started, as a mesh with a dimension for each kind of work."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fewstep.errors import FewstepError, MachineError
from fewstep.layout import DIMENSIONS, Layout

WAIT = timedelta(minutes=10)  # for a process that does not answer: the first call may compile
QUIET = timedelta(days=30)  # that the first process may have nothing to say; its death is noticed at once
REPLICAS = "replicas"


def world() -> tuple[int, int]:
    """This process's rank, and how many there are, whether or not they can talk yet."""
    if dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def joined() -> Iterator[tuple[int, int]]:
    """Inside the block the processes that torchrun started can talk, each with a GPU of its own where there are some:
    (rank, processes).

    Raises:
        MachineError: fewer GPUs than processes.
    """
    rank, size = world()
    if size == 1 or dist.is_initialized():
        yield rank, size
        return
    with talking(rank, size, own_device(), WAIT):
        yield rank, size


def own_device(environment: Mapping[str, str] = os.environ) -> torch.device:
    """The GPU of this process, by torchrun's `LOCAL_RANK`; the CPU where there is none at all.

    Raises:
        MachineError: others have a GPU, and this one has none.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local, gpus = int(environment.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= gpus:
        raise MachineError(f"Process {local} of this machine has no GPU: there are {gpus}, so start {gpus} processes.")
    return torch.device("cuda", local)


@contextmanager
def talking(rank: int, size: int, device: torch.device, wait: timedelta | None = None) -> Iterator[None]:
    """Inside the block so many processes can talk, each on its device; one alone talks to itself.

    `wait`: for an answer; None: torch's own time.
    """
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    # Numbers on the CPU, which decide what happens next, go by gloo: so no process waits for its GPU.
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    alone: dict[str, Any] = {} if "MASTER_ADDR" in os.environ else {"store": dist.HashStore()}  # type: ignore[attr-defined]
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=wait, **alone)
    try:
        yield
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Mesh:
    """The process groups of a layout that this process is in; None: it is alone there.

    Attributes:
        all: of one copy of the layout. A world of more processes has several, which know nothing of each other.
        sequence: `ring` and `ulysses` together.
        vae: those that decode together.
    """

    all: Any
    data: Any = None
    guidance: Any = None
    sequence: Any = None
    ring: Any = None
    ulysses: Any = None
    tensor: Any = None
    vae: Any = None

    @classmethod
    def of(cls, layout: Layout, device: str) -> Mesh:
        """The groups of a layout whose size divides the world's. All processes of the world must ask."""
        mesh = device_mesh(layout, device)
        groups = {name: _group(mesh[name]) for name in DIMENSIONS}
        sequence = mesh["ring", "ulysses"]._flatten("sequence")
        whole = mesh[DIMENSIONS]._flatten("all")
        decoders = whole
        if 1 < layout.vae < layout.size:
            pictures = dist.get_world_size() // layout.vae
            decoders = init_device_mesh(device, (pictures, layout.vae), mesh_dim_names=("pictures", "vae"))["vae"]
        vae = _group(decoders) if layout.vae > 1 else None
        return cls(_group(whole), sequence=_group(sequence), vae=vae, **groups)


def device_mesh(layout: Layout, device: str) -> DeviceMesh:
    """All processes of the world, of which each has its place in a copy of the layout, by `layout.DIMENSIONS`. It is
    the same mesh for training, whose parts of weights lie along `data`."""
    shape = (dist.get_world_size() // layout.size, *(getattr(layout, name) for name in DIMENSIONS))
    return init_device_mesh(device, shape, mesh_dim_names=(REPLICAS, *DIMENSIONS))


def _group(mesh: DeviceMesh) -> Any:
    return mesh.get_group() if mesh.size() > 1 else None


class Peers:
    """What the first process of the world tells the others, in the order in which it does it.

    All processes must begin with it.

    Attributes:
        numbers: to call things by, each once.
        lost: something went wrong here that the others know nothing of, so they can't be spoken to any more.
    """

    def __init__(self) -> None:
        self.numbers, self.lost = count(), False
        self._group = dist.new_group(backend="gloo", timeout=QUIET)

    @contextmanager
    def told(self, what: str, *given: Any) -> Iterator[None]:
        """The block is what the others do at the same time.

        Raises:
            FewstepError: they were lost before.
        """
        if self.lost:
            raise FewstepError("The other processes no longer do what this one does: end all of them and begin anew.")
        self._say(what, *given)
        try:
            yield
        except BaseException:
            self.lost = True
            raise

    def end(self) -> None:
        """There is nothing more to come. Those that are lost see it by the end of this process."""
        if not self.lost:
            self._say(None)

    def _say(self, what: str | None, *given: Any) -> None:
        dist.broadcast_object_list([(what, *given)], src=0, group=self._group)

    def hear(self) -> tuple[Any, ...]:
        """The next that the first process says; (None,) at the end."""
        said: list[Any] = [None]
        dist.broadcast_object_list(said, src=0, group=self._group)
        heard: tuple[Any, ...] = said[0]
        return heard


def check_same(facts: Mapping[str, str], group: Any) -> None:
    """Hold what this process says against what the others say. Every process of the group must ask.

    Raises:
        FewstepError: they differ; it names what and which ranks.
    """
    if group is None:
        return
    said: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(said, dict(facts), group=group)
    for name in facts:
        values = [one.get(name) for one in said]
        if others := [rank for rank, value in enumerate(values) if value != values[0]]:
            ranks = ", ".join(map(str, others))
            raise FewstepError(
                f"All processes must have the same {name}: on rank {ranks} it is {values[others[0]]}, on rank 0 "
                f"{values[0]}."
            )
