"""The one thread that owns the models: pictures and videos take turns, pictures of equal work share a call."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, Literal

from fewstep.errors import FewstepError
from fewstep.media import write_mp4
from fewstep.server.engine import Engine, OnStep, Shot, Work, free_memory, out_of_memory
from fewstep.server.errors import DISK_FULL, ApiError, busy, invalid, no_room, not_found, not_ready
from fewstep.server.jobs import WAITING, Job, Jobs
from fewstep.server.media import picture_of
from fewstep.server.metrics import Metrics
from fewstep.server.results import Results

log = logging.getLogger("fewstep.server")
PICTURES_IN_A_ROW = 4  # calls for pictures, at most, while a video waits
BETWEEN_NOTES = 0.25  # seconds between two notes of a video's progress
BETWEEN_SWEEPS = 30.0  # seconds between two looks for results whose time is over
Turn = Literal["image", "video"]
STOPPING = "The server is stopping."
ENDED = ("cancelled", "not_ready")  # codes of calls that were ended, not failed


class Cancelled(Exception):
    """Nobody waits for this any more."""


class Stopped(Exception):
    """The server is to end."""


@dataclass(eq=False)
class Ticket:
    """A request for pictures that waits for the worker.

    Attributes:
        work: of each of its calls.
        shots: a picture each.
        owner: the name of the key that asked for it.
        future: the pictures, in the order of the shots; or an `ApiError`.
        cancelled: nobody waits for it any more.
    """

    work: Work
    shots: Sequence[Shot]
    owner: str
    future: Future[list[Any]] = field(default_factory=Future)
    cancelled: bool = False


def turn(pictures: int, videos: int, in_a_row: int) -> Turn | None:
    """Whose turn it is when so many wait: pictures go first, being short, but never starve the videos."""
    if pictures and not (videos and in_a_row >= PICTURES_IN_A_ROW):
        return "image"
    return "video" if videos else None


def gather(waiting: Iterable[Ticket], most: int) -> list[Ticket]:
    """The first ticket, and those after it that can share its call, up to `most` pictures. Edits go alone."""
    tickets = iter(waiting)
    chosen = [next(tickets)]
    pictures = len(chosen[0].shots)
    for ticket in tickets:
        alike = ticket.work == chosen[0].work and all(s.image is None for t in (ticket, chosen[0]) for s in t.shots)
        if alike and pictures + len(ticket.shots) <= most:
            chosen.append(ticket)
            pictures += len(ticket.shots)
    return chosen


def failure(error: Exception, model: str) -> ApiError:
    """What the client is told of a call that failed."""
    if isinstance(error, ApiError):
        return error
    once = {"x-should-retry": "false"}  # the official client tries other 5xx again by itself
    if out_of_memory(error):
        message = f"{model} ran out of memory; ask for a smaller size, fewer pictures or fewer seconds."
        return ApiError(500, message, "out_of_memory", headers=once)
    if no_room(error):
        return replace(DISK_FULL, headers=once)
    if isinstance(error, FewstepError):
        return invalid(str(error))
    first = next(iter(str(error).strip().splitlines()), "")[:300]
    if isinstance(error, ValueError):  # with which pipelines refuse arguments
        return invalid(f"{model} refuses this: {first}")
    return ApiError(500, f"{model} failed with {type(error).__name__}: {first}", "server_error", headers=once)


class Worker(threading.Thread):
    """Loads the models, then makes what waits until it is told to stop.

    `ready` is set when all models are warm; `broken` says why they can't be.
    """

    def __init__(self, engine: Engine, jobs: Jobs, results: Results, metrics: Metrics) -> None:
        super().__init__(name="fewstep-worker", daemon=True)
        self.engine, self.jobs, self.results, self.metrics = engine, jobs, results, metrics
        self.ready = threading.Event()
        self.broken: Exception | None = None
        self.when_broken: Callable[[], None] = lambda: None
        self.when_ready: Callable[[], None] = lambda: None
        self._tickets: deque[Ticket] = deque()
        self._running: list[Ticket] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._swept = float("-inf")
        self._pace = {"image": 1.0, "video": 10.0}  # seconds that one lasted, lately
        metrics.waiting.labels("image").set_function(lambda: len(self._tickets))
        metrics.waiting.labels("video").set_function(partial(jobs.count, "queued"))

    def submit(self, ticket: Ticket) -> None:
        """Let a request wait for its turn.

        Raises:
            ApiError: 429, too many wait; 503, the server is stopping.
        """
        with self._wake:
            if self._stopping:
                raise not_ready(STOPPING)
            self._tickets = deque(waiting for waiting in self._tickets if not waiting.cancelled)
            if len(self._tickets) >= self.results.limits.queue:
                raise self.full("image", len(self._tickets))
            self._tickets.append(ticket)
            self._wake.notify()

    def full(self, kind: Turn, waiting: int) -> ApiError:
        return busy(f"{waiting} requests wait already; come again later.", min(60.0, self._pace[kind]), "queue_full")

    def awake(self) -> None:
        """A video was queued."""
        with self._wake:
            self._wake.notify()

    def count(self, owner: str) -> int:
        """How many requests for pictures of one owner wait or run."""
        with self._wake:
            return sum(ticket.owner == owner for ticket in (*self._tickets, *self._running))

    def stop(self) -> None:
        """End between two steps. A video that runs waits again, for the next start."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self.join()

    def run(self) -> None:
        try:
            self.engine.load()
        except Exception as error:
            self.broken = error
            self.when_broken()
            return
        self.ready.set()
        self.when_ready()
        in_a_row = 0
        while not self._stopping:
            try:
                in_a_row = in_a_row + 1 if self._once(in_a_row) == "image" else 0
            except Exception:  # the disk of the jobs is full or gone, say; it may come back, and this thread would not
                log.exception("The worker could not do its work.")
                time.sleep(1.0)
        for ticket in self._take(lambda waiting: list(waiting)):
            ticket.future.set_exception(not_ready(STOPPING))

    def _once(self, in_a_row: int) -> Turn | None:
        """Make what is next, or wait for something to do; returns whose turn it was."""
        whose = turn(len(self._tickets), self.jobs.count(*WAITING), in_a_row)
        if whose == "image":
            self._pictures(self._take(lambda waiting: gather(waiting, self.engine.most(waiting[0].work))))
            self._running = []
        elif whose == "video":
            self._video()
        if time.monotonic() - self._swept > BETWEEN_SWEEPS:
            self.metrics.stored.set(self.results.sweep())
            self._swept = time.monotonic()
        with self._wake:
            if not (self._tickets or self._stopping or self.jobs.count(*WAITING)):
                self._wake.wait(BETWEEN_SWEEPS)
        return whose

    def _take(self, choose: Callable[[deque[Ticket]], list[Ticket]]) -> list[Ticket]:
        """Some of what waits, without what nobody waits for any more."""
        with self._wake:
            chosen = choose(self._tickets)
            for ticket in chosen:
                self._tickets.remove(ticket)
            self._running = [ticket for ticket in chosen if ticket.future.set_running_or_notify_cancel()]
            return self._running

    def _pictures(self, tickets: Sequence[Ticket]) -> None:
        """Make what these tickets ask for. Where a shared call fails, each is tried alone."""
        wanted = [ticket for ticket in tickets if not ticket.cancelled]
        if not wanted:
            return
        made = self._shared(wanted)
        failed = made if isinstance(made, ApiError) else None
        if failed and failed.code not in ENDED:
            free_memory()  # here, where no traceback holds the tensors any more
            if len(wanted) > 1:
                for ticket in wanted:
                    self._pictures([ticket])
                return
        pictures = iter(made if isinstance(made, list) else ())
        for ticket in wanted:
            if failed:
                ticket.future.set_exception(failed)
            else:
                ticket.future.set_result(list(islice(pictures, len(ticket.shots))))
            self.metrics.jobs.labels("image", failed.code if failed else "completed").inc()

    def _shared(self, tickets: Sequence[Ticket]) -> list[Any] | ApiError:
        """The pictures of all these tickets, or why there are none."""
        work = tickets[0].work
        shots = [shot for ticket in tickets for shot in ticket.shots]
        most = self.engine.most(work) if shots[0].image is None else 1
        try:
            calls = (shots[start : start + most] for start in range(0, len(shots), most))
            return [made for call in calls for made in self._call(work, call, self._watch(tickets), "image")]
        except Cancelled:
            return ApiError(499, "The client has gone.", "cancelled")
        except Stopped:
            return not_ready(STOPPING)
        except Exception as error:
            return self._failure(error, work)

    def _video(self) -> None:
        job = self.jobs.take(attempts=self.results.limits.attempts, now=self.results.clock())
        if job is None:  # its owner deleted it in this moment
            return
        try:
            end = "completed" if self._make(job) else "deleted"
        except Cancelled:
            end = "deleted"
        except Stopped:
            self.jobs.put_back(job.id)
            return
        except Exception as error:
            failed = self._failure(error, _work(job))
            end = failed.code or "server_error"
            self.jobs.fail(job.id, end, failed.message, now=self.results.clock())
        if end not in ("completed", "deleted"):
            free_memory()  # here, where no traceback holds the tensors any more
        self.metrics.jobs.labels("video", end).inc()

    def _make(self, job: Job) -> bool:
        """Make a job's video and put it in its place; False where the job is gone."""
        reference = self.jobs.reference(job.id)
        image = picture_of(reference, "input_reference").convert("RGB") if reference else None
        work = _work(job)
        if work.model not in self.engine.entries:  # it was, before a restart
            raise not_found("model", work.model, "model_not_found")
        [frames] = self._call(work, [Shot(job.prompt, job.work["seed"], image)], self._note(job), "video")
        fps = self.engine.entries[work.model].fps
        file = self.results.write(job.id, "mp4", lambda path: write_mp4(path, frames, fps))
        if self.jobs.complete(job.id, file):
            return True
        self.results.discard(file)
        return False

    def _call(self, work: Work, shots: Sequence[Shot], on_step: OnStep, kind: Turn) -> list[Any]:
        start = time.perf_counter()
        made = self.engine.run(work, shots, on_step)
        seconds = time.perf_counter() - start
        self._pace[kind] += 0.2 * (seconds - self._pace[kind])
        self.metrics.calls.labels(work.model, kind).observe(seconds)
        self.metrics.frames.labels(work.model, kind).inc(len(made) if kind == "image" else len(made[0]))
        return made

    def _failure(self, error: Exception, work: Work) -> ApiError:
        failed = failure(error, work.model)
        if failed.code == "out_of_memory":
            self.metrics.out_of_memory.labels(work.model).inc()
        if not isinstance(error, FewstepError | ApiError):
            log.error("A call of %s failed.", work.model, exc_info=error)
        return failed

    def _watch(self, tickets: Sequence[Ticket]) -> OnStep:
        def on_step(done: int, steps: int) -> None:
            if self._stopping:
                raise Stopped
            if all(ticket.cancelled for ticket in tickets):
                raise Cancelled

        return on_step

    def _note(self, job: Job) -> OnStep:
        last = 0.0

        def on_step(done: int, steps: int) -> None:
            nonlocal last
            if self._stopping:
                raise Stopped
            if time.monotonic() - last < BETWEEN_NOTES:
                return
            last = time.monotonic()
            if not self.jobs.progress(job.id, min(99, 100 * done // steps) if steps else 0):
                raise Cancelled

        return on_step


def _work(job: Job) -> Work:
    call = job.work["call"]
    return Work(**{**call, "size": tuple(call["size"])})  # which JSON made a list
