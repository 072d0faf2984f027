"""Runs tasks on workers until all are made or given up: workers that die are replaced, and their tasks done by others.

Ray places the workers' processes and tells when one dies. Outputs come back as bytes, so no folder need be shared.
"""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fewstep.batch.cluster import cluster
from fewstep.batch.crew import Crew, Places
from fewstep.batch.schedule import Group, Schedule, Task
from fewstep.batch.worker import Build, Process
from fewstep.errors import FewstepError, MachineError
from fewstep.progress import Patience, bar, patience

TICK = 1.0  # seconds until the bar moves again, whatever happens
Deliver = Callable[[Task, bytes, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """What came of the tasks.

    Attributes:
        made: how many.
        failures: name -> why, of those that are given up.
        replaced: how many workers died and were replaced.
        rate: outputs a second, from when the first worker was ready.
        facts: what the makers say that really happened.
    """

    made: int
    failures: Mapping[str, str]
    replaced: int
    rate: float
    facts: Mapping[str, Any]


NOTHING = Outcome(0, {}, 0, 0.0, {})


def work(
    tasks: Iterable[Task], build: Build, crew: Crew, deliver: Deliver, *, title: str, show: bool = True
) -> Outcome:
    """Make all tasks; `deliver` gets each output when it is made, with facts about its making.

    Args:
        build: builds what each process holds; it is sent to all of them.
        title: of the bar.
        show: whether there is a bar.

    Raises:
        InputError: what a `Crew` can't have, or no cluster answers.
        MachineError: no Ray, or no worker is left.
        KeyboardInterrupt: the user, or the system, wants it to end.
        FewstepError: what `build` or `deliver` raises on purpose.
    """
    schedule = Schedule.of(tasks, crew.batch, crew.attempts)
    if schedule.over:
        return NOTHING
    with cluster(crew.ray, (crew.workers or 1) * crew.group) as there:
        run = _Run(schedule, build, crew, crew.on(there), deliver)
        # Within it, since Ray sets a handler of its own: Ctrl-C and SIGTERM end the run between two answers.
        with bar(title, schedule.total, show=show) as progress, patience() as user, run.workers():
            run.until_over(progress, user)
        return Outcome(schedule.done, schedule.failures, run.replaced, run.rate, run.facts)


@dataclass(eq=False)
class _Worker:
    """A worker as the engine sees it.

    Attributes:
        deaths: in a row, without anything made between them, that no task is suspected of.
        actors: one a process; none: it is given up.
        asked: what the actors have not answered yet.
        answers: to the same question, of those that have.
        tasks: what it has in hand; none while it gets ready.
        placement: that keeps a group's processes close to each other.
    """

    number: int
    deaths: int = 0
    actors: list[Any] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    tasks: Group = ()
    placement: Any = None

    @property
    def idle(self) -> bool:
        return bool(self.actors) and not self.asked


class _Run:
    def __init__(self, schedule: Schedule, build: Build, crew: Crew, places: Places, deliver: Deliver) -> None:
        import ray

        self.ray, self.process = ray, ray.remote(Process)
        self.schedule, self.build, self.crew, self.places, self.deliver = schedule, build, crew, places, deliver
        self.all = [_Worker(number) for number in range(1, places.workers + 1)]
        self.replaced = 0
        self.begun = 0.0  # when the first task was handed out
        self.facts: dict[str, Any] = {}
        self.said: set[str] = set()

    @contextmanager
    def workers(self) -> Iterator[None]:
        """The workers are there inside the block, and gone after it."""
        try:
            for worker in self.all:
                self._start(worker)
            yield
        finally:
            for worker in self.all:
                self._end(worker)

    @property
    def rate(self) -> float:
        """Outputs a second."""
        return self.schedule.done / (time.perf_counter() - self.begun) if self.begun else 0.0

    def until_over(self, progress: Callable[[int, str], None], user: Patience) -> None:
        while not self.schedule.over:
            for worker in self.all:
                if worker.idle and (tasks := self.schedule.take()):
                    self._ask(worker, tasks)
            self._listen()
            progress(self.schedule.settled, f"{self.rate:.3g}/s" if self.begun else "workers get ready")
            if user.over:
                raise KeyboardInterrupt

    def _start(self, worker: _Worker) -> None:
        size, resources = self.crew.group, dict(self.places.resources)
        strategy: Any = "SPREAD"
        if size > 1:
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            bundle = {{"num_gpus": "GPU", "num_cpus": "CPU"}[name]: count for name, count in resources.items() if count}
            worker.placement = self.ray.util.placement_group([bundle] * size, strategy="PACK")
            strategy = PlacementGroupSchedulingStrategy(worker.placement)
        actor = self.process.options(**resources, max_restarts=0, scheduling_strategy=strategy)
        worker.actors = [actor.remote(self.build, self.places.threads) for _ in range(size)]
        meeting = worker.actors[0].meeting.remote() if size > 1 else None  # Ray hands its value on to the others
        worker.asked = [actor.open.remote(rank, size, meeting) for rank, actor in enumerate(worker.actors)]

    def _ask(self, worker: _Worker, tasks: Group) -> None:
        self.begun = self.begun or time.perf_counter()
        worker.tasks = tasks
        worker.asked = [actor.make.remote([task.item for task in tasks]) for actor in worker.actors]

    def _end(self, worker: _Worker) -> None:
        for actor in worker.actors:
            self.ray.kill(actor)
        if worker.placement is not None:
            self.ray.util.remove_placement_group(worker.placement)
        worker.actors, worker.asked, worker.answers, worker.tasks, worker.placement = [], [], [], (), None

    def _listen(self) -> None:
        """Wait for an answer, or for a while, and deal with all that came."""
        asked = {ref: worker for worker in self.all for ref in worker.asked}
        answered, _ = self.ray.wait(list(asked), timeout=TICK)
        for ref in answered:
            if ref in asked[ref].asked:  # else the worker was ended by what another of its processes said
                self._hear(asked[ref], ref)

    def _hear(self, worker: _Worker, ref: Any) -> None:
        try:
            answer = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            self._died(worker, _first_line(error))
            return
        self._warn(answer["warnings"])
        if "error" in answer:
            self._went_wrong(worker, answer)
            return
        worker.asked.remove(ref)
        worker.answers.append(answer)
        if not worker.asked:
            self._answered(worker)

    def _answered(self, worker: _Worker) -> None:
        tasks, answers = worker.tasks, worker.answers
        worker.tasks, worker.answers = (), []
        for answer in answers:
            if not answer.get("made"):
                continue
            facts = {"seconds": round(answer["seconds"], 4), "together": len(tasks)}
            where = {"host": answer["host"], "pid": answer["pid"]}
            for task, data in zip(tasks, answer["made"], strict=True):
                self.deliver(task, data, {**facts, "worker": worker.number, **where})
            self.schedule.made(tasks)
            self.facts, worker.deaths = answer["facts"], 0

    def _went_wrong(self, worker: _Worker, answer: Mapping[str, Any]) -> None:
        where = "" if answer["host"] == platform.node() else f"On {answer['host']}: "
        why = f"{where}{answer['error']}"
        if not worker.tasks and answer["ours"]:
            raise FewstepError(why)  # it would go wrong in every worker
        if not worker.tasks or self.crew.group > 1:  # of a group, the other processes may wait for this one for ever
            self._died(worker, why)
            return
        self.schedule.failed(worker.tasks, why)
        worker.tasks, worker.asked = (), []

    def _died(self, worker: _Worker, why: str) -> None:
        # Over a task that failed before, it may well have been the task. Such come one after the other, at the end.
        worker.deaths += not self.schedule.suspects(worker.tasks)
        self.schedule.failed(worker.tasks, f"Its worker died: {why}")
        self._end(worker)
        if worker.deaths <= self.crew.restarts:
            self.replaced += 1
            self._start(worker)
            return
        self._warn([f"Worker {worker.number} died {worker.deaths} times in a row and is given up: {why}"])
        if not any(one.actors for one in self.all):
            left = self.schedule.total - self.schedule.settled
            raise MachineError(f"No worker is left, and {left} outputs are not made; the last one died: {why}")

    def _warn(self, sentences: Iterable[str]) -> None:
        for sentence in sentences:
            if sentence not in self.said:  # once, not once a worker and call
                self.said.add(sentence)
                warnings.warn(sentence, RuntimeWarning, stacklevel=2)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
