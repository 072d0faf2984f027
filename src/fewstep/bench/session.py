"""Running the rows: all side by side in the same rounds, or, where memory holds only two pipelines, one after another.

A round calls every open row once with the same prompts and seeds, the baseline first. So each time of a row has a
time of the baseline from the same round beside it, and the pictures of the timed calls are the ones whose quality is
measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from fewstep.bench.candidates import Batch, Candidate, Subject, opened
from fewstep.bench.quality import Array, psnr
from fewstep.bench.report.schema import EngagedRow, Skipped
from fewstep.bench.timing import Run, interleaved, speedup
from fewstep.bench.verdict import SPEED_MARGIN, idle
from fewstep.errors import FewstepError

PROBES = 3  # interleaved runs that decide whether a trick stays in the growing stack
PROBE_PSNR = 20.0  # dB: pictures further than this from those of the stack before are another model's


@dataclass
class Record:
    """What was seen of one row. `baseline` holds the baseline's runs of the same rounds, one for each of `runs`."""

    candidate: Candidate
    setup_seconds: float
    warmup_seconds: float
    memory_mb: float
    runs: list[Run] = field(default_factory=list)
    baseline: list[Run] = field(default_factory=list)
    pictures: list[Array] = field(default_factory=list)
    engaged: tuple[EngagedRow, ...] = ()

    @property
    def all_pictures(self) -> Array:
        return np.concatenate(self.pictures)

    @property
    def speedup(self) -> float:
        return speedup([r.seconds for r in self.baseline], [r.seconds for r in self.runs])

    @property
    def best_speedup(self) -> float:
        """Of the fastest runs of both: what a busy machine disturbs least, for a decision from few calls."""
        return min(r.seconds for r in self.baseline) / min(r.seconds for r in self.runs)


Progress = Callable[[str], None]
"""Told what the runs do next, for the person who waits."""


@dataclass(frozen=True)
class Setting:
    """What all rows share. `rounds`: at least, at most; new rounds start only while they would end before `deadline`
    (on `time.monotonic`)."""

    new_pipe: Callable[[], Any]
    batches: tuple[Batch, ...]
    rounds: tuple[int, int]
    deadline: float
    tell: Progress


class Session(Protocol):
    """A way to run the rows."""

    records: dict[str, Record]
    skipped: list[Skipped]

    def add(self, candidate: Candidate) -> bool:
        """Open the row and warm it up; False when it can't be, and why is in `skipped`."""

    def helps(self, name: str, without: str) -> bool:
        """Whether the row `name` is faster than the row `without`, which lacks one trick, and still the same model."""

    def finish(self) -> None:
        """After this every record has its runs."""

    def again(self, batch: Batch) -> Array:
        """The baseline's pictures of a batch, made once more."""


class SideBySide:
    """All rows are open at once and share every round: the fairest, where memory has room for so many copies."""

    def __init__(self, setting: Setting, baseline: Candidate, stack: ExitStack) -> None:
        self.records: dict[str, Record] = {}
        self.skipped: list[Skipped] = []
        self._setting, self._baseline, self._stack = setting, baseline.name, stack
        self._subjects: dict[str, Subject] = {}
        self._open(baseline)

    def add(self, candidate: Candidate) -> bool:
        with _skipping(candidate, self.skipped) as added:
            self._open(candidate)
        return added()

    def _open(self, candidate: Candidate) -> None:
        self._setting.tell(f"{candidate.name}: opening and warming up")
        with ExitStack() as aside:  # closed at once if the warm-up fails, else with everything at the end
            subject = aside.enter_context(opened(candidate, self._setting.new_pipe))
            self.records[candidate.name] = _warmed(subject, self._setting.batches[0])
            self._subjects[candidate.name] = subject
            self._stack.push(aside.pop_all())

    def helps(self, name: str, without: str) -> bool:
        self._setting.tell(f"{name}: does it help the stack?")
        pair = {key: self._subjects[key] for key in (without, name)}
        records = {key: Record(pair[key].candidate, 0, 0, 0) for key in pair}
        _run_rounds(pair, records, without, self._setting.batches[:1] * PROBES, None)
        records[name].engaged = _engaged(pair[name])
        return _helps(records[name], records[without])

    def finish(self) -> None:
        setting = self._setting
        most, took = setting.rounds[1], 0.0
        for number, batch in enumerate(setting.batches[:most]):
            start = time.monotonic()
            if number >= setting.rounds[0] and start + took > setting.deadline:
                break
            tell = partial(_tell_round, setting.tell, f"round {number + 1} of {most} (fewer if time runs out)")
            _run_rounds(self._subjects, self.records, self._baseline, (batch,), tell)
            took = time.monotonic() - start
        for name, subject in self._subjects.items():
            self.records[name].engaged = _engaged(subject)

    def again(self, batch: Batch) -> Array:
        return self._subjects[self._baseline].generate(batch)


class InPairs:
    """Each row is opened, measured against the baseline and closed before the next: two copies at a time."""

    def __init__(self, setting: Setting, baseline: Candidate, stack: ExitStack) -> None:
        self.records: dict[str, Record] = {}
        self.skipped: list[Skipped] = []
        self._setting, self._name = setting, baseline.name
        setting.tell(f"{baseline.name}: opening and warming up")
        self._base = stack.enter_context(opened(baseline, setting.new_pipe))
        self.records[baseline.name] = _warmed(self._base, setting.batches[0])

    def add(self, candidate: Candidate) -> bool:
        with _skipping(candidate, self.skipped) as added:
            self._setting.tell(candidate.name)
            with opened(candidate, self._setting.new_pipe) as subject:
                record = _warmed(subject, self._setting.batches[0])
                base = self.records[self._name]
                first = not base.runs  # later pairs repeat the baseline's calls: times that count, pictures that do not
                kept = base if first else Record(base.candidate, 0, 0, 0)
                _run_rounds({self._name: self._base, candidate.name: subject}, {self._name: kept, candidate.name:
                record}, self._name, self._setting.batches, None)  # fmt: skip
                record.engaged = _engaged(subject)
            self.records[candidate.name] = record
        return added()

    def helps(self, name: str, without: str) -> bool:
        return _helps(self.records[name], self.records[without])

    def finish(self) -> None:
        base = self.records[self._name]
        if not base.runs:
            _run_rounds({self._name: self._base}, {self._name: base}, self._name, self._setting.batches, None)

    def again(self, batch: Batch) -> Array:
        return self._base.generate(batch)


def _helps(row: Record, without: Record) -> bool:
    """Both records have their speed-up over the same baseline. A cache that spared no step helps by chance at most."""
    if any(idle(engaged.facts) for engaged in row.engaged):
        return False
    faster = row.best_speedup / without.best_speedup > 1 + SPEED_MARGIN
    return faster and psnr(row.all_pictures, without.all_pictures) >= PROBE_PSNR


def _run_rounds(
    subjects: dict[str, Subject],
    records: dict[str, Record],
    baseline: str,
    batches: Sequence[Batch],
    tell: Callable[[str], None] | None,
) -> None:
    """Every subject once for each batch, the baseline first; the runs go to `records`."""

    def once(name: str) -> Callable[[int], tuple[Array, Run]]:
        def call(number: int) -> tuple[Array, Run]:
            if tell is not None:
                tell(name)
            return subjects[name].run(batches[number])

        return call

    last: Run | None = None
    for _, name, (pictures, run) in interleaved({name: once(name) for name in subjects}, range(len(batches))):
        last = run if name == baseline or last is None else last
        records[name].runs.append(run)
        records[name].baseline.append(last)
        records[name].pictures.append(pictures)


def _tell_round(tell: Progress, which: str, name: str) -> None:
    tell(f"{which}: {name}")


def _warmed(subject: Subject, batch: Batch) -> Record:
    seconds, memory_mb = subject.warm_up(batch)
    return Record(subject.candidate, subject.setup_seconds, seconds, memory_mb)


def _engaged(subject: Subject) -> tuple[EngagedRow, ...]:
    return tuple(
        EngagedRow(name=e.name, facts=_plain(dict(e.facts)), warnings=tuple(str(w) for w in e.warnings()))
        for e in subject.engaged
    )


def _plain(value: Any) -> Any:
    """The value in JSON's own types."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


@contextmanager
def _skipping(candidate: Candidate, skipped: list[Skipped]) -> Iterator[Callable[[], bool]]:
    """A row that fewstep refuses is noted with the reason; any other error goes on."""
    before = len(skipped)
    try:
        yield lambda: len(skipped) == before
    except FewstepError as error:
        skipped.append(Skipped(name=candidate.name, why=str(error)))
