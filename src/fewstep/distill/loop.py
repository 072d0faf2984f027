"""The one training loop. A `Distiller` says what to minimise; this does the rest.

A step is a function of the checkpoint before it, the settings and the step's number: batches come by number and random
draws from a generator seeded with it. So a run that was killed and resumed has the losses of one that never stopped.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from fewstep.distill import checkpoint, optimizers
from fewstep.distill.precision import Precision, autocast, check_precision, compiled
from fewstep.distill.progress import bar, patience
from fewstep.distill.roles import device_of
from fewstep.distill.seeds import derive, generator
from fewstep.errors import FewstepError, InputError, bad_value
from fewstep.files import replacing

Batch = TypeVar("Batch", contravariant=True)
Watch = Callable[[int, Mapping[str, nn.Module]], None]


@dataclass(frozen=True)
class Update:
    """One optimizer step to take: minimise `loss` (a scalar) over `module`, known to the loop as `name`."""

    name: str
    module: nn.Module
    loss: Tensor


class Distiller(Protocol[Batch]):
    """A method of distillation."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """What it trains: each gets its own optimizer and average."""
        ...

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        """What it only runs, a teacher for one: compiled with the rest when that is asked for."""
        ...

    def updates(self, batch: Batch, generator: torch.Generator) -> Iterator[Update]:
        """The updates of one step, each computed after the one before it was applied."""
        ...


@runtime_checkable
class Paced(Distiller[Batch], Protocol[Batch]):
    """A method that changes as training goes on, by stages or a warm-up."""

    def at(self, step: int, steps: int) -> Distiller[Batch]:
        """Itself as it is at a step, counted from 0, of so many: over the same modules, and depending on nothing else,
        so that a resumed run is the same as one that never stopped."""
        ...


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        steps: optimizer steps of the whole run.
        rate: the highest learning rate.
        warmup: steps over which the rate rises from 0.
        decay: the part of the run, at its end, over which the rate falls linearly to 0; 1 is all of it.
        optimizer: a name in `optimizers.OPTIMIZERS`.
        clip: the largest norm of a module's gradient.
        ema: decay of the average of the weights; it starts lower: (1 + n)/(10 + n) after n updates.
        precision: "bf16" computes the forward passes under autocast; weights and losses stay float32.
        compile: compile the modules (slow first steps, then faster ones).
        save_every: steps between checkpoints.
        seed: of every random draw.

    Raises:
        InputError: a value out of its range.
    """

    steps: int
    rate: float = 3e-4
    warmup: int = 50
    decay: float = 1.0
    optimizer: str = "adamw"
    clip: float = 1.0
    ema: float = 0.999
    precision: Precision = "fp32"
    compile: bool = False
    save_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        rules: dict[str, tuple[bool, str]] = {
            "steps": (self.steps >= 1, "at least 1"),
            "rate": (self.rate > 0, "above 0"),
            "warmup": (self.warmup >= 0, "0 or more"),
            "decay": (0 <= self.decay <= 1, "in [0, 1]"),
            "optimizer": (self.optimizer in optimizers.OPTIMIZERS, f"one of {', '.join(optimizers.OPTIMIZERS)}"),
            "clip": (self.clip > 0, "above 0"),
            "ema": (0 <= self.ema < 1, "in [0, 1)"),
            "save_every": (self.save_every >= 1, "at least 1"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(bad_value(name, "the training loop", rule, getattr(self, name)))
        check_precision(self.precision)

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rising = min(1.0, (step + 1) / (self.warmup + 1))
        falling = min(1.0, (self.steps - step) / max(1.0, self.decay * self.steps))
        return self.rate * min(rising, falling)


@dataclass(frozen=True)
class Trained:
    """Where a run stands: the averaged weights by name, and whether all steps are done."""

    step: int
    finished: bool
    averages: Mapping[str, nn.Module]


@dataclass
class _Run:
    """The mutable state of a run: everything that a checkpoint holds."""

    folder: Path
    settings: Settings
    facts: Mapping[str, Any]
    modules: Mapping[str, nn.Module]
    step: int = 0
    saved: int = 0  # the step of the newest checkpoint
    counts: dict[str, int] = field(default_factory=dict)  # updates so far, by name

    def __post_init__(self) -> None:
        rate = self.settings.rate
        self.averages = {name: copy.deepcopy(module).requires_grad_(False) for name, module in self.modules.items()}
        self.optimizers = {name: optimizers.build(self.settings.optimizer, m, rate) for name, m in self.modules.items()}
        self.counts = dict.fromkeys(self.modules, 0)

    @property
    def _files(self) -> dict[str, nn.Module]:
        return {**self.modules, **{f"{name}.average": module for name, module in self.averages.items()}}

    def _identity(self) -> dict[str, Any]:
        """What must not differ between the parts of one run; as JSON would give it back."""
        value: dict[str, Any] = json.loads(json.dumps({**asdict(self.settings), **self.facts}))
        del value["save_every"], value["compile"]
        return value

    def save(self) -> None:
        states = {name: [opt.state_dict() for opt in opts] for name, opts in self.optimizers.items()}
        state = {"identity": self._identity(), "counts": self.counts}
        checkpoint.save(self.folder, self.step, self._files, states, state)
        self.saved = self.step

    def resume(self) -> None:
        """Take up the newest checkpoint, if there is one, and forget losses that were logged after it."""
        checkpoint.clean(self.folder)
        found = checkpoint.saved(self.folder)
        if found:
            state = checkpoint.read_state(found[-1])
            self._check_identity(state["identity"])
            for name, states in checkpoint.load(found[-1], self._files).items():
                for optimizer, one in zip(self.optimizers[name], states, strict=True):
                    optimizer.load_state_dict(one)
            self.step, self.saved, self.counts = state["step"], state["step"], state["counts"]
        _forget_after(self.folder / "losses.jsonl", self.step)

    def _check_identity(self, before: Mapping[str, Any]) -> None:
        now = self._identity()
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                raise InputError(
                    f"{self.folder} holds a run with {name} = {before.get(name)!r}, this one has {now.get(name)!r}; "
                    "take the same settings to go on with it, or another folder."
                )

    def apply(self, update: Update) -> float:
        """One optimizer step and one step of the average; returns the norm of the gradient before clipping."""
        parameters = [p for p in update.module.parameters() if p.requires_grad]
        update.loss.backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.settings.clip))
        if not math.isfinite(norm):
            raise FewstepError(
                f"The gradient of {update.name!r} is {norm} at step {self.step + 1} of {self.folder}; "
                "take a lower rate. The last checkpoint is whole."
            )
        for optimizer in self.optimizers[update.name]:
            for group in optimizer.param_groups:
                group["lr"] = self.settings.rate_at(self.step)
            optimizer.step()
        for module in self.modules.values():  # all: a loss may have reached through another trained module
            module.zero_grad()
        self._average(update.name)
        return norm

    @torch.no_grad()
    def _average(self, name: str) -> None:
        self.counts[name] += 1
        n, source, target = self.counts[name], self.modules[name], self.averages[name]
        decay = min(self.settings.ema, (1 + n) / (10 + n))
        for average, value in zip(target.parameters(), source.parameters(), strict=True):
            average.lerp_(value, 1 - decay)
        for kept, buffer in zip(target.buffers(), source.buffers(), strict=True):
            kept.copy_(buffer)


def train(
    distiller: Distiller[Batch],
    batches: Callable[[int], Batch],
    folder: Path | str,
    settings: Settings,
    *,
    facts: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
    title: str = "training",
    show: bool = True,
) -> Trained:
    """Train until `settings.steps`, going on from the newest checkpoint in `folder`.

    Args:
        batches: the batch of a step, counted from 0; the same each time it is asked for.
        folder: gets `checkpoints/` and `losses.jsonl` (a line a step: step, losses and gradient norms by name, rate).
        facts: what else must be equal for a run to be the same run, as JSON: the method, the student's steps.
        watch: called after each step with its number, from 1, and the averages.
        show: a progress bar.

    Ctrl-C and SIGTERM end the step in hand, save and return with `finished` False; a second Ctrl-C leaves at once.

    Raises:
        InputError: the folder holds a run with other settings or facts.
        CheckpointError: its newest checkpoint is damaged.
        MachineError: the disk is full, or this machine can't compile.
        FewstepError: a gradient is not finite.
    """
    run = _Run(Path(folder), settings, facts or {}, distiller.modules)
    run.resume()
    modules = [*distiller.modules.values(), *distiller.frozen.values()]
    log = run.folder / "losses.jsonl"
    with (
        torch.random.fork_rng(),  # the caller's random state is as before afterwards
        compiled(modules, settings.compile),
        patience() as user,
        log.open("a", encoding="utf-8") as lines,
        bar(title, settings.steps, run.step, show=show) as progress,
    ):
        while run.step < settings.steps and not user.over:
            line = _step(run, distiller, batches(run.step))
            print(json.dumps(line), file=lines, flush=True)
            progress(run.step, "  ".join(f"{name} {loss:.4g}" for name, loss in line["loss"].items()))
            if watch is not None:
                watch(run.step, run.averages)
            if run.step % settings.save_every == 0:
                run.save()
        if run.step != run.saved:
            run.save()
    return Trained(run.step, run.step == settings.steps, run.averages)


def _step(run: _Run, distiller: Distiller[Batch], batch: Batch) -> dict[str, Any]:
    start, settings = time.perf_counter(), run.settings
    torch.manual_seed(derive(settings.seed, "global", run.step))  # for dropout
    method = distiller.at(run.step, settings.steps) if isinstance(distiller, Paced) else distiller
    updates = method.updates(batch, generator(settings.seed, "step", run.step))
    losses, norms = {}, {}
    while True:
        with autocast(device_of(next(iter(run.modules.values()))), settings.precision):
            update = next(updates, None)
        if update is None:
            break
        losses[update.name] = float(update.loss.detach())
        norms[update.name] = run.apply(update)
    rate = settings.rate_at(run.step)
    run.step += 1
    seconds = round(time.perf_counter() - start, 4)
    return {"step": run.step, "loss": losses, "gradient": norms, "rate": rate, "seconds": seconds}


def _forget_after(log: Path, step: int) -> None:
    """Drop the lines of later steps, and one that a kill cut in two."""
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    kept = lines[:step]
    if kept != lines:
        with replacing(log) as aside:
            aside.write_text("".join(kept), encoding="utf-8")
