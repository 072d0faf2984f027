"""Trainings by several processes of this machine: how to start them, and a method with all that can go wrong."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.multiprocessing
from torch import Tensor, nn

from fewstep.distill.engine.loop import Update


def start(work: Callable[[int], None], processes: int = 2, seconds: float = 300) -> None:
    """Run `work(rank)` in processes that know of each other as torchrun's do; raises what one of them raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.start_processes(
        _run, (work, processes, port), nprocs=processes, join=False, start_method="fork"
    )
    deadline = time.monotonic() + seconds
    try:
        while not context.join(timeout=1):  # False also where only one of them has ended
            if time.monotonic() > deadline:
                raise TimeoutError("processes that train together hang")
    finally:
        for process in context.processes:
            process.kill()


def _run(rank: int, work: Callable[[int], None], processes: int, port: int) -> None:
    torch.set_num_threads(1)  # the parent's threads did not come along
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()})
    work(rank)


class SmallBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.dropout = nn.Linear(6, 10), nn.Linear(10, 6), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.second(torch.nn.functional.silu(self.first(x))))


class Blocks(nn.Module):
    """Two blocks between layers of its own, one of an odd size; a buffer that each call in training changes."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.enter, self.leave = nn.Linear(3, 6), nn.Linear(6, 3)
            self.blocks = nn.ModuleList(SmallBlock() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for block in self.blocks:
            h = block(h)
        return self.leave(h)


@dataclass(eq=False)
class Pair:
    """A critic that follows a frozen teacher on the student's samples, and a student that is trained through it.

    `unequal`: the student makes its samples by a drawn number of calls, as backward simulation does.
    """

    seed: int = 0
    unequal: bool = False

    def __post_init__(self) -> None:
        self.student, self.critic = Blocks(self.seed), Blocks(self.seed + 1)
        self.teacher = Blocks(99).requires_grad_(False).eval()

    @property
    def modules(self):
        return {"student": self.student, "critic": self.critic}

    @property
    def frozen(self):
        return {"teacher": self.teacher}

    def updates(self, batch, generator):
        x = batch + 0.1 * torch.randn(batch.shape, generator=generator)
        calls = int(torch.randint(1, 5, (), generator=generator)) if self.unequal else 1
        with torch.no_grad():
            y = x
            for _ in range(calls):
                y = self.student(y)
        yield Update("critic", self.critic, (self.critic(y) - self.teacher(y)).square().mean())
        yield Update("student", self.student, (self.critic(self.student(x)) - 2 * x).square().mean())


def batches(number: int) -> Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(number))
