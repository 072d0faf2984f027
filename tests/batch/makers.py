"""Makers for tests of the engine: real processes, no model."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.errors import InputError


class Shout:
    """Makes a text of capitals. An item may say what else happens: `sleep`, `error`, `die`; or how many workers must
    have been built before it goes on: `workers`, as the file `opened` counts them."""

    def __init__(self, threads: int, opened: Path | None = None) -> None:
        self.made, self.opened = 0, opened
        if opened is not None:
            with opened.open("a") as file:
                file.write(f"{os.getpid()}\n")

    @property
    def facts(self) -> dict[str, Any]:
        return {"made": self.made}

    def make(self, items: Sequence[Mapping[str, Any]]) -> list[bytes]:
        for item in items:
            time.sleep(item.get("sleep", 0))
            while self.opened and len(self.opened.read_text().split()) < item.get("workers", 0):
                time.sleep(0.01)
            if "error" in item:
                raise ValueError(item["error"])
            if item.get("die"):
                os.kill(os.getpid(), signal.SIGKILL)
        self.made += len(items)
        return [item["text"].upper().encode() for item in items]


def refused(threads: int) -> Shout:
    raise InputError("This maker is never right.")


def dies(threads: int) -> Shout:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class Summed(Shout):
    """Adds up the ranks of its group's processes, which they can only do together."""

    def make(self, items: Sequence[Mapping[str, Any]]) -> list[bytes]:
        import torch
        import torch.distributed as dist

        ranks = torch.tensor([dist.get_rank() + 1])
        if "error" in items[0] and dist.get_rank() == 1:
            raise ValueError("rank 1 can't")
        dist.all_reduce(ranks)
        return [f"{item['text']} {ranks.item()} of {os.environ['WORLD_SIZE']}".encode() for item in items]
