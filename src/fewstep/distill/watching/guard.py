"""The collapse guard: says in one sentence what goes wrong in a training, and what to do about it.

Methods that match distributions (DMD2, SiD, LADD) can leave the teacher after some thousand steps: colours saturate,
samples of one prompt become one picture, the critic loses track of the student. Losses do not show it; samples do. So
every few steps a `Probe` draws samples of the student's average, from the same noise each time, and holds them against
the teacher's. `Guard.decide` is a pure function of what happened so far and of one such measurement:

    history, measurement -> verdict: "go on", "keep" (the best so far), "back" (to the best, at a lower rate) or "stop"

A student of few steps is no match for its teacher when it starts. So nothing is done before it has been sound once.
`History` is plain numbers, kept in each checkpoint: a run that was killed and resumed meets the same verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from fewstep.errors import InputError, bad_value

Action = Literal["go on", "keep", "back", "stop"]


def sizes(x0: Tensor) -> Tensor:
    """The root mean square of each sample, (samples, …) -> (samples,) float64. It grows as contrast does."""
    return x0.double().flatten(1).square().mean(dim=1).sqrt()


def saturation(x0: Tensor, reach: float) -> float:
    """The share of samples (samples, …) whose size is beyond `reach`."""
    return float((sizes(x0) > reach).double().mean())


def diversity(x0: Tensor) -> tuple[float, float]:
    """The mean distance of two samples of one condition, and of two conditions: x0 (conditions, draws, …).

    Raises:
        InputError: fewer than two conditions, or draws of each.
    """
    if x0.dim() < 3 or min(x0.shape[:2]) < 2:
        raise InputError(bad_value("x0", "diversity", "of 2 or more draws of 2 or more conditions", tuple(x0.shape)))
    points = x0.double().flatten(2)
    within = torch.stack([torch.pdist(draws).mean() for draws in points]).mean()
    which = torch.arange(len(points)).repeat_interleave(points.shape[1])
    apart = which[:, None] != which
    across = torch.cdist(points.flatten(0, 1), points.flatten(0, 1))[apart.to(points.device)].mean()
    return float(within), float(across)


@dataclass(frozen=True)
class Reference:
    """The teacher's samples in three numbers: the largest size, and the two distances of `diversity`.

    Raises:
        InputError: one of them is not above 0, as where all samples of a condition are the same.
    """

    reach: float
    within: float
    across: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise InputError(bad_value(name, "the teacher's samples", "above 0 and finite", value))

    @classmethod
    def of(cls, x0: Tensor) -> Reference:
        """From samples of shape (conditions, draws, …). The largest of n sizes is passed by one in n + 1."""
        return cls(float(sizes(x0.flatten(0, 1)).max()), *diversity(x0))


@dataclass(frozen=True)
class Measurement:
    """The student at a step, held against its teacher.

    Attributes:
        finite: no number is NaN or infinite; where one is, the others say nothing.
        saturation: the share of samples beyond the teacher's reach.
        within, across: how far apart samples are of one condition, and of two, the teacher's being 1.
        score: any measure of quality, lower is better, or None.
    """

    step: int
    finite: bool = True
    saturation: float = 0.0
    within: float = 1.0
    across: float = 1.0
    score: float | None = None


def measured(step: int, x0: Tensor, reference: Reference, score: float | None = None) -> Measurement:
    """Samples of shape (conditions, draws, …), of the same conditions as the teacher's."""
    if not bool(torch.isfinite(x0).all()) or (score is not None and not math.isfinite(score)):
        return Measurement(step, finite=False)
    within, across = diversity(x0)
    return Measurement(
        step,
        saturation=saturation(x0.flatten(0, 1), reference.reach),
        within=within / reference.within,
        across=across / reference.across,
        score=score,
    )


@dataclass(frozen=True, eq=False)
class Probe:
    """How to measure. `sample` runs a student's module, always from the same noise: x0 (conditions, draws, …).

    `reference` is of the teacher's samples of the same conditions. `score`, of x0, is a distance: lower is better.
    """

    sample: Callable[[nn.Module], Tensor]
    reference: Reference
    score: Callable[[Tensor], float] | None = None

    @torch.no_grad()
    def __call__(self, step: int, module: nn.Module) -> Measurement:
        training = module.training
        x0 = self.sample(module.eval())
        module.train(training)
        return measured(step, x0, self.reference, None if self.score is None else self.score(x0))


@dataclass(frozen=True)
class Policy:
    """What is too much, and what is done then.

    Attributes:
        every: steps between measurements.
        saturation: the largest share of samples beyond the teacher's reach.
        within, across: the least diversity, the teacher's being 1.
        critic: how far its running loss may be from the loss it started with, as a factor either way: many times that,
            and it has lost the student; a small part, and all samples are alike.
        score: how many times the best score a score may be; None takes scores only to tell the best.
        window: losses of the critic that make its start, and its running mean.
        patience: bad measurements in a row before something is done; for NaN it is done at once.
        factor: of the rate, each time that the run goes back to its best checkpoint.
        backs: how often it goes back before it stops there.

    Raises:
        InputError: a value out of its range.
    """

    every: int = 250
    saturation: float = 0.2
    within: float = 0.5
    across: float = 0.7
    critic: float = 5.0
    score: float | None = None
    window: int = 50
    patience: int = 2
    factor: float = 0.5
    backs: int = 3

    def __post_init__(self) -> None:
        rules: dict[str, tuple[bool, str]] = {
            "every": (self.every >= 1, "at least 1"),
            "saturation": (0 <= self.saturation <= 1, "in [0, 1]"),
            "within": (self.within >= 0, "0 or above"),
            "across": (self.across >= 0, "0 or above"),
            "critic": (self.critic > 1, "above 1"),
            "score": (self.score is None or self.score > 1, "above 1, or None"),
            "window": (self.window >= 1, "at least 1"),
            "patience": (self.patience >= 1, "at least 1"),
            "factor": (0 < self.factor <= 1, "in (0, 1]"),
            "backs": (self.backs >= 0, "0 or more"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(bad_value(name, "the collapse guard", rule, getattr(self, name)))


@dataclass(frozen=True)
class History:
    """What happened so far; all that a verdict depends on but the measurement. `asdict` and `History(**…)` keep it.

    Attributes:
        best: the step of the best checkpoint, None before the first sound measurement.
        score: its score.
        bad: bad measurements in a row.
        backs: how often the run went back.
        rate: what the rate is multiplied by.
        losses: how many losses of the critic were heard.
        start, running: the mean of the first of them, and of the last.
        stopped: the sentence with which the run was stopped.
    """

    best: int | None = None
    score: float | None = None
    bad: int = 0
    backs: int = 0
    rate: float = 1.0
    losses: int = 0
    start: float = 0.0
    running: float = 0.0
    stopped: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What to do, why in one sentence, and the history after it."""

    action: Action
    reason: str
    history: History


@dataclass(frozen=True, eq=False)
class Guard:
    """A policy and a probe. `watched` is the module whose average is measured, `critic` the one whose loss is heard."""

    probe: Probe
    policy: Policy = Policy()
    watched: str = "student"
    critic: str = "critic"

    def heard(self, history: History, losses: Mapping[str, float]) -> History:
        """After a step, by its losses by name."""
        loss = losses.get(self.critic)
        return history if loss is None else heard(self.policy, history, loss)

    def due(self, step: int) -> bool:
        """Whether to measure after this step, counted from 1."""
        return step % self.policy.every == 0

    def measure(self, step: int, averages: Mapping[str, nn.Module]) -> Measurement:
        return self.probe(step, averages[self.watched])

    def decide(self, history: History, measurement: Measurement) -> Verdict:
        return decide(self.policy, history, measurement)


def heard(policy: Policy, history: History, loss: float) -> History:
    """With one more loss of the critic: its mean so far within the first window, then a mean that forgets."""
    count = history.losses + 1
    running = history.running + (loss - history.running) / min(count, policy.window)
    start = running if count <= policy.window else history.start
    return replace(history, losses=count, start=start, running=running)


def wrong(policy: Policy, history: History, now: Measurement) -> list[str]:
    """What is wrong with a measurement, with numbers; empty where nothing is."""
    if not now.finite:
        return ["numbers are no longer finite"]
    found = []
    if now.saturation > policy.saturation:
        found.append(
            f"{now.saturation:.0%} of the samples are larger than any of the teacher's, where {policy.saturation:.0%} "
            "may be"
        )
    for name, value, least in (
        ("samples of one condition", now.within, policy.within),
        ("samples of different conditions", now.across, policy.across),
    ):
        if value < least:
            found.append(f"{name} are {value:.2f} times as far apart as the teacher's, where {least:g} is the least")
    if history.losses > policy.window:
        ratio = history.running / history.start if history.start else math.inf
        if not 1 / policy.critic <= ratio <= policy.critic:
            found.append(
                f"the critic's loss is {history.running:.3g}, {ratio:.2f} times the {history.start:.3g} it started with"
            )
    if policy.score and now.score is not None and history.score and now.score > policy.score * history.score:
        found.append(f"the score is {now.score:.4g}, more than {policy.score:g} times the best, {history.score:.4g}")
    return found


def decide(policy: Policy, history: History, now: Measurement) -> Verdict:
    """The verdict on a measurement: pure, and the same for the same arguments."""
    problems = wrong(policy, history, now)
    where = f"At step {now.step}"
    if not problems:
        sound = replace(history, bad=0)
        if now.score is not None and history.score is not None and now.score >= history.score:
            return Verdict("go on", f"{where} the student is sound; step {history.best} was better.", sound)
        kept = replace(sound, best=now.step, score=now.score)
        return Verdict("keep", f"{where} the student is sound, and the best so far.", kept)
    what = f"{where} {' and '.join(problems)}"
    if history.best is None and now.finite:
        return Verdict("go on", f"{what}; it has not been sound yet.", history)
    bad = replace(history, bad=history.bad + 1)
    if now.finite and bad.bad < policy.patience:
        return Verdict("go on", f"{what}; {bad.bad} of {policy.patience} such measurements.", bad)
    return _back(policy, bad, what)


def _back(policy: Policy, history: History, what: str) -> Verdict:
    if history.best is None or history.backs >= policy.backs:
        why = "there is no sound step to go back to" if history.best is None else f"it went back {history.backs} times"
        reason = f"{what}; {why}, so training stops."
        return Verdict("stop", reason, replace(history, stopped=reason))
    rate = history.rate * policy.factor
    after = replace(history, bad=0, backs=history.backs + 1, rate=rate, running=history.start)
    return Verdict("back", f"{what}: back to step {history.best}, at {rate:g} of the rate.", after)
