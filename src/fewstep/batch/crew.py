"""Who does the work: how many workers, of how many processes, and what that comes to on a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fewstep.batch.cluster import Cluster
from fewstep.errors import InputError, bad_value


@dataclass(frozen=True)
class Crew:
    """Who does the work.

    Attributes:
        workers: None: one a GPU; where there is none, one a machine.
        threads: of each process on a CPU; None: the machine's cores, shared among its workers.
        batch: tasks in one call, at most.
        ray: the address of a Ray cluster; None: one of our own, on this machine.
        group: processes a worker, each with its device, that work on each call together.
        attempts: how often a task may fail, or its worker die over it, before it is given up.
        restarts: how often in a row a worker may die without having made anything, before it is given up; deaths over
            a task that failed before do not count.

    Raises:
        InputError: a number below 1.
    """

    workers: int | None = None
    threads: int | None = None
    batch: int = 1
    ray: str | None = None
    group: int = 1
    attempts: int = 2
    restarts: int = 3

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "batch", "group", "attempts", "restarts"):
            value = getattr(self, name)
            if value is not None and not (type(value) is int and value >= 1):
                raise InputError(bad_value(name, "a batch", "a whole number, at least 1", value))

    def on(self, there: Cluster) -> Places:
        """How many workers, and what each of their processes takes, of what there is.

        Raises:
            InputError: more than there is.
        """
        if there.gpus and self.group > there.gpus:
            raise InputError(
                bad_value("group", "a batch", f"at most {there.gpus}, the GPUs that there are", self.group)
            )
        most = (there.gpus or there.machines) // self.group
        workers = self.workers or max(1, most)
        if there.gpus and workers * self.group > there.gpus:
            raise InputError(bad_value("workers", "a batch", f"at most {most}, for {there.gpus} GPUs", workers))
        on_one = -(-workers * self.group // max(1, there.machines))
        threads = self.threads or max(1, there.cores // on_one)
        if there.gpus:
            return Places(workers, threads, {"num_gpus": 1, "num_cpus": 0})
        if not there.own and workers * self.group * threads > there.cpus:
            rule = (
                f"at most {there.cpus // (threads * self.group)}, for {there.cpus} CPUs and {threads} threads a process"
            )
            raise InputError(bad_value("workers", "a batch", rule, workers))
        return Places(workers, threads, {"num_cpus": 1 if there.own else threads})


@dataclass(frozen=True)
class Places:
    """What a crew comes to on a cluster. `resources`: of each process, as Ray calls them."""

    workers: int
    threads: int
    resources: Mapping[str, float]
