"""The measured stack: baseline, fewer steps, the best solver, each trick alone, the stack growing by a trick a row."""

from __future__ import annotations

import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fewstep.bench.candidates import Batch, Candidate, check_prompts, label
from fewstep.bench.report.schema import Report
from fewstep.bench.rows import Judge, noise_floor, rows_of
from fewstep.bench.session import InPairs, Progress, Record, Session, Setting, SideBySide
from fewstep.bench.solvers import STEPS
from fewstep.errors import InputError, bad_value
from fewstep.machine import Machine, versions
from fewstep.zoo.tasks import Task

PICTURES_SHOWN = 8
NOISE_SEED = 1000  # the first prompt's noise; every next prompt has the next


@dataclass(frozen=True)
class Plan:
    """What a waterfall measures.

    candidates: rows as they are, the baseline first. solver_steps: the steps at which the best solver is sought
    (None: not).
    growth: tricks put on `grows_from` one by one; one that does not help is shown and left out of the next rows.
    finals: last rows, each (name, techniques, more): the techniques with the tricks that helped put on, and then a row
        for each of `more` put on top.
    rounds: at least, at most; each is one batch of prompts through every row.
    """

    title: str
    model: str
    new_pipe: Callable[[], Any]
    candidates: tuple[Candidate, ...]
    prompts: tuple[str, ...]
    solver_steps: int | None = None
    solver_call: Mapping[str, Any] = field(default_factory=dict)
    growth: tuple[Any, ...] = ()
    grows_from: str | None = None
    finals: tuple[tuple[str, tuple[Any, ...], tuple[Any, ...]], ...] = ()
    task: Task | None = None
    asks: tuple[Any, ...] = ()
    batch: int = 16
    rounds: tuple[int, int] = (3, 3)
    limit_seconds: float = float("inf")
    side_by_side: bool = True

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(bad_value("batch", "a waterfall", "at least 1", self.batch))
        if not 1 <= self.rounds[0] <= self.rounds[1]:
            raise InputError(bad_value("rounds", "a waterfall", "at least 1, the most no fewer", self.rounds))
        check_prompts(self.prompts)

    @property
    def baseline(self) -> Candidate:
        return self.candidates[0]

    @property
    def steps(self) -> int:
        """How often `measure` tells what it does, at most: the length of a progress bar."""
        solvers = len(STEPS) if self.solver_steps else 0
        rows = len(self.candidates) + solvers + len(self.growth) + sum(1 + len(more) for *_, more in self.finals)
        return rows * (1 + self.rounds[1] * self.side_by_side) + len(self.growth) + 2

    def batches(self) -> tuple[Batch, ...]:
        """One batch of prompts for each round; the prompts begin again where there are too few."""
        prompts = [self.prompts[i % len(self.prompts)] for i in range(self.batch * self.rounds[1])]
        return tuple(
            Batch(tuple(prompts[i : i + self.batch]), tuple(range(NOISE_SEED + i, NOISE_SEED + i + self.batch)))
            for i in range(0, len(prompts), self.batch)
        )


@dataclass(frozen=True)
class Measured:
    """The report, and the pictures that it shows: row name -> (n, height, width, 3) in [0, 1]."""

    report: Report
    pictures: dict[str, Any]


def measure(plan: Plan, tell: Progress = lambda doing: None) -> Measured:
    """Run every row of the plan.

    Raises:
        FewstepError: the baseline can't run. A row that can't is skipped, and the report says why.
    """
    start = time.monotonic()
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # the techniques' own: each row of the report holds its warnings
        setting = Setting(plan.new_pipe, plan.batches(), plan.rounds, start + plan.limit_seconds, tell)
        kind = SideBySide if plan.side_by_side else InPairs
        session: Session = kind(setting, plan.baseline, stack)
        for candidate in (*plan.candidates[1:], *_solvers(plan)):
            session.add(candidate)
        kept = _grow(plan, session)
        session.finish()
        tell("the baseline again: the noise floor")
        repeat = session.again(setting.batches[0])
    tell("quality")
    return _measured(plan, session, kept, repeat, start)


def _solvers(plan: Plan) -> list[Candidate]:
    """One candidate for each solver that gets the plan's number of denoiser calls."""
    if plan.solver_steps is None:
        return []
    return [
        Candidate(_solver_row(plan.solver_steps, name), "steps", solver=name,
                  call={**plan.solver_call, "num_inference_steps": allowed(plan.solver_steps)})
        for name, allowed in STEPS.items()
    ]  # fmt: skip


def _solver_row(steps: int, solver: str) -> str:
    return f"{steps} steps, best solver ({solver})"


def _grow(plan: Plan, session: Session) -> dict[str, bool]:
    """Add the stack's rows. Returns for each whether the next ones build on it."""
    base = next((c for c in plan.candidates if c.name == plan.grows_from and c.name in session.records), plan.baseline)
    top, kept = base, {}
    for trick in plan.growth:
        name = f"{top.name} + {label(trick)}"
        row = replace(top, name=name, kind="stack", recipe=(*top.recipe, trick), grows_from=top.name)
        if session.add(row):
            kept[name] = session.helps(name, top.name)
            top = row if kept[name] else top
    helpful = top.recipe[len(base.recipe) :]
    for name, techniques, more in plan.finals:
        full = " + ".join((name, *(label(trick) for trick in helpful)))
        row = Candidate(full, "stack", recipe=(*techniques, *helpful))
        session.add(row)
        for trick in more:
            row = replace(row, name=f"{row.name} + {label(trick)}", recipe=(*row.recipe, trick), grows_from=row.name)
            session.add(row)
    return kept


def _measured(plan: Plan, session: Session, kept: dict[str, bool], repeat: Any, start: float) -> Measured:
    judge = Judge(plan.task, plan.asks)
    records, tried = _best_solver_only(plan, session.records, judge)
    records = _ordered(records)
    shown = min(PICTURES_SHOWN, plan.batch)
    rows = rows_of(records, judge, kept, shown)
    baseline = records[plan.baseline.name]
    report = Report(
        title=plan.title,
        model=plan.model,
        task=plan.task.name if plan.task else None,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command(),
        **surroundings(),
        batch=plan.batch,
        rounds=len(baseline.pictures),
        samples=len(baseline.all_pictures),
        total_seconds=time.monotonic() - start,
        prompts=plan.batches()[0].prompts[:shown],
        rows=rows,
        skipped=tuple(session.skipped),
        solvers_tried=tried,
        noise=noise_floor(baseline, repeat, rows, judge),
    )
    return Measured(report, {name: record.pictures[0][:shown] for name, record in records.items()})


def _best_solver_only(
    plan: Plan, records: dict[str, Record], judge: Judge
) -> tuple[dict[str, Record], dict[str, float]]:
    """The records with only the best of the solvers' rows, and what each solver got."""
    tries = {name: record for name, record in records.items() if record.candidate.solver is not None}
    if not tries:
        return records, {}
    scores = {name: judge.distance(record.all_pictures, records[plan.baseline.name].all_pictures)
              for name, record in tries.items()}  # fmt: skip
    best = min(scores, key=lambda name: scores[name])
    left = {name: record for name, record in records.items() if name == best or name not in tries}
    return left, {str(tries[name].candidate.solver): score for name, score in scores.items()}


def _ordered(records: dict[str, Record]) -> dict[str, Record]:
    """Baseline, fewer steps (most first), each alone, the stack as it grew."""
    kinds = ("baseline", "steps", "alone", "stack")
    return dict(sorted(records.items(), key=lambda item: kinds.index(item[1].candidate.kind)))


def surroundings() -> dict[str, Any]:
    """The machine, the versions and the threads, for reports and benchmarks."""
    machine = asdict(Machine.detect())
    machine["features"] = sorted(machine["features"])
    return {"device": machine, "versions": versions(), "threads": torch.get_num_threads()}


def command() -> str:
    """The command that this process was started with."""
    name = Path(sys.argv[0]).name
    head = ["python", os.path.relpath(sys.argv[0])] if name.endswith(".py") and name != "__main__.py" else ["fewstep"]
    return shlex.join([*head, *sys.argv[1:]])
