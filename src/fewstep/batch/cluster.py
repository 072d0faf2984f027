"""The Ray that runs the workers: one of our own on this machine, or a cluster at an address."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from fewstep.errors import InputError, MachineError

PATIENCE = 15  # seconds that a cluster has to answer
STORE = 2**28  # bytes that results wait in until they are written; what is more goes to the disk
PROBE = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')"
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Cluster:
    """What there is to work with.

    Attributes:
        own: it runs on this machine, for this run alone.
        gpus: of all machines.
        cpus: of all machines.
        machines: how many there are.
        cores: of the machine that has the fewest.
    """

    own: bool
    gpus: int
    cpus: int
    machines: int
    cores: int


@contextmanager
def cluster(address: str | None = None, processes: int = 1) -> Iterator[Cluster]:
    """A connection to the Ray cluster at `address`, or a Ray of our own where that is None; both end with the block.

    Where the program is connected to a Ray already and names none, that one is taken, and left as it is. One of our own
    can be reached from this machine alone, and only with a secret that its processes inherit.

    Args:
        processes: that shall run at one time, on a CPU.

    Raises:
        MachineError: Ray is not installed, or can't start.
        InputError: no cluster answers at `address`, or the program is connected to another already.
    """
    if connected := _connected():
        if address is not None:
            raise InputError(f"This program is connected to a Ray already: leave out the address {address}.")
        yield _facts(connected, own=False)
        return
    own = address is None
    with _environment(_alone() if own else {}):
        ray = _ray()
        if own:
            cores = max(processes, os.cpu_count() or 1)
            place = {"address": "local", "_node_ip_address": LOOPBACK, "include_dashboard": False}
            _init(ray, num_cpus=cores, object_store_memory=STORE, **place)
            _check_loopback(ray)
        else:
            _probe(str(address))
            _init(ray, address=address)
        try:
            yield _facts(ray, own=own)
        finally:
            ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        message = f"A batch needs the package {error.name!r}: pip install 'fewstep[ray]'."
        raise MachineError(message) from None
    return ray


def _init(ray: Any, **options: Any) -> None:
    try:
        ray.init(**options, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        raise MachineError(f"Ray could not start: {' '.join(str(error).split())}") from error


def _connected() -> Any:
    ray = sys.modules.get("ray")
    return ray if ray is not None and ray.is_initialized() else None


def _alone() -> dict[str, str]:
    """What Ray reads when it is imported and when it starts."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Off, every address is the loopback's, as Ray does it by itself on Windows and macOS. `_node_ip_address` alone
        # is not enough: Ray puts the machine's outer address in the place of 127.0.0.1.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _token(),
    }


@cache  # Ray reads it once a process
def _token() -> str:
    return secrets.token_hex(32)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """These variables are set inside the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _check_loopback(ray: Any) -> None:
    addresses = {node["NodeManagerAddress"] for node in ray.nodes()}
    if addresses != {LOOPBACK}:  # Ray was imported before, and so did not read the variables
        warnings.warn(
            f"Ray listens at {', '.join(sorted(addresses))}, where other machines may reach it: "
            "leave its import to fewstep, or start it yourself.",
            RuntimeWarning,
            stacklevel=4,
        )


def _probe(address: str) -> None:
    """Connect in a process of its own first: Ray itself tries for minutes, and then ends the process that tried.

    Raises:
        InputError: no cluster answers.
    """
    line = [sys.executable, "-c", PROBE, address]
    try:
        ran = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(f"No Ray cluster answers at {address} within {PATIENCE} seconds.") from None
    if ran.returncode:
        said = [text.strip() for text in ran.stderr.splitlines() if text.strip()]
        raise InputError(f"Could not connect to a Ray cluster at {address}: {said[-1] if said else 'it ended'}")


def _facts(ray: Any, *, own: bool) -> Cluster:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus, cpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("GPU", "CPU"))
    # A head without CPUs runs no workers.
    cores = [int(node["CPU"]) for node in nodes if node.get("CPU")]
    return Cluster(own, gpus, cpus, len(cores), min(cores, default=1))
