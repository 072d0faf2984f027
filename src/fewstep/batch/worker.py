"""One process of a worker: it holds a `Maker` and makes what it is told. What it answers is plain data.

A worker is one process with one device, or a group of them that work on each call together, as torchrun starts them.
"""

from __future__ import annotations

import gc
import os
import platform
import socket
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from fewstep.errors import FewstepError

PACKAGE = Path(__file__).parents[1]


class Maker(Protocol):
    """What a worker holds; each of its processes has its own."""

    def make(self, items: Sequence[Mapping[str, Any]]) -> list[bytes]:
        """The outputs of some items of one kind, in their order; each depends on its own item alone."""

    @property
    def facts(self) -> dict[str, Any]:
        """What really happened, as JSON."""


Build = Callable[[int], Maker]  # threads to compute with on a CPU -> what the process holds


class Process:
    """An actor's body. It never raises: an answer says under `error` what went wrong, so that an error means death."""

    def __init__(self, build: Build, threads: int) -> None:
        self._build, self._threads = build, threads
        self._maker: Maker | None = None
        self._rank = 0
        self._group = ExitStack()  # the group lives as long as the process

    def meeting(self) -> str:
        """A free address of this process's machine, for the processes of a group to meet at."""
        import ray

        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"{host}:{probe.getsockname()[1]}"

    def open(self, rank: int, size: int, meeting: str | None) -> dict[str, Any]:
        """Join the group, where there is one, and build the maker."""
        return _told(lambda: self._open(rank, size, meeting))

    def make(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The outputs of the items under `made`, if this is the group's first process."""
        return _told(lambda: self._make(items))

    def _open(self, rank: int, size: int, meeting: str | None) -> dict[str, Any]:
        self._rank = rank
        if meeting is not None:
            from fewstep.techniques.parallel.processes import joined

            _as_torchrun(rank, size, meeting)
            self._group.enter_context(joined())
        self._maker = self._build(self._threads)
        return {}

    def _make(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        assert self._maker is not None
        start = time.perf_counter()
        made = self._maker.make(items)
        seconds = time.perf_counter() - start
        return {"made": made if self._rank == 0 else [], "seconds": seconds, "facts": self._maker.facts}


def _told(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer of `work`, with our warnings of it, or its error and whether that is one of fewstep's own."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        try:
            answer = work()
        except FewstepError as error:
            answer = {"error": str(error), "ours": True}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}", "ours": False}
    if "error" in answer:
        _free_memory()  # out here, where the error's frames hold nothing any more
    said = [str(one.message) for one in caught if Path(one.filename).is_relative_to(PACKAGE)]
    return {**answer, "warnings": said, "host": platform.node(), "pid": os.getpid()}


def _as_torchrun(rank: int, size: int, meeting: str) -> None:
    """Say in the environment what torchrun does. Ray shows each process its own device alone, as number 0."""
    host, port = meeting.rsplit(":", 1)
    said = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": size, "MASTER_ADDR": host, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in said.items()}


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
