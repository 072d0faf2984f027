"""The one training loop. A `Distiller` says what to minimise; this does the rest.

A step is a function of the checkpoint before it, the settings and the step's number: batches come by number and random
draws from generators seeded with it. So a run that was killed and resumed has the losses of one that never stopped, and
a step has the same batches and draws on one process and on several.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from fewstep.distill.data.seeds import derive, generator
from fewstep.distill.engine.parallel import Parallel
from fewstep.distill.engine.precision import autocast, checkpointed, compiled, trained_attention, warn_if_emulated
from fewstep.distill.engine.roles import device_of
from fewstep.distill.engine.settings import Settings
from fewstep.distill.engine.sharding import gathered
from fewstep.distill.engine.state import Run
from fewstep.distill.watching.guard import Guard, Measurement, Verdict
from fewstep.errors import FewstepError
from fewstep.progress import bar, patience

__all__ = ["Distiller", "Paced", "Settings", "Trained", "Update", "train"]

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
        """The updates of one step, each computed after the one before it was applied.

        Where a step has several batches, an update of each is taken and their gradients averaged, then the next: so
        every batch must give updates of the same names in the same order.
        """
        ...


@runtime_checkable
class Paced(Distiller[Batch], Protocol[Batch]):
    """A method that changes as training goes on, by stages or a warm-up."""

    def at(self, step: int, steps: int) -> Distiller[Batch]:
        """Itself as it is at a step, counted from 0, of so many: over the same modules, and depending on nothing else,
        so that a resumed run is the same as one that never stopped."""
        ...


@dataclass(frozen=True)
class Trained:
    """Where a run stands.

    Attributes:
        step: steps that were taken.
        finished: whether all are done.
        averages: the averaged weights by name: the best that a guard kept, else the last. Whole modules on the CPU
            where training was sharded.
        best: the step that a guard kept; None without one, or before it was sound.
        stopped: the sentence with which a guard ended it.
    """

    step: int
    finished: bool
    averages: Mapping[str, nn.Module]
    best: int | None = None
    stopped: str | None = None


def train(
    distiller: Distiller[Batch],
    batches: Callable[[int], Batch],
    folder: Path | str,
    settings: Settings,
    *,
    facts: Mapping[str, Any] | None = None,
    guard: Guard | None = None,
    parallel: Parallel | None = None,
    watch: Watch | None = None,
    title: str = "training",
    show: bool = True,
) -> Trained:
    """Train until `settings.steps`, going on from the newest checkpoint in `folder`.

    Args:
        batches: a batch by its number, from 0; the same each time it is asked for. Step s of n batches takes the
            numbers from s·n on; after a guard's going back, numbers that had no turn yet.
        folder: gets `checkpoints/`, `losses.jsonl` (a line a step: step, losses and gradient norms by name, rate) and
            `guard.jsonl` (a line a verdict). Shared by all processes.
        facts: what else must be equal for a run to be the same run, as JSON: the method, the student's steps.
        guard: measures the averages every few steps and after the last one, and keeps the best checkpoint, goes back to
            it at a lower rate, or stops. Then `losses.jsonl` forgets the steps after the best; `guard.jsonl` does not.
        parallel: this process among others, see `parallel.found`.
        watch: called on every process after each step with its number, from 1, and the averages.
        show: a progress bar.

    Ctrl-C and SIGTERM end the step in hand, save and return with `finished` False; a second Ctrl-C leaves at once.

    Raises:
        InputError: the folder holds a run with other settings or facts.
        CheckpointError: its newest checkpoint is damaged.
        MachineError: the disk is full, or this machine can't compile.
        FewstepError: a gradient is not finite and no guard is there, or batches give different updates.
    """
    parallel = parallel or Parallel()
    show = show and parallel.first
    if parallel.first:
        warn_if_emulated(settings.precision)
    with ExitStack() as stack:
        stack.enter_context(parallel.joined())
        run = Run(Path(folder), settings, distiller.modules, distiller.frozen, facts or {}, guard, parallel)
        stack.callback(run.close)
        run.resume()
        # The caller's random state is as before afterwards; without a list this would wake every GPU of the machine.
        stack.enter_context(torch.random.fork_rng([parallel.device] if parallel.device.type == "cuda" else None))
        stack.enter_context(checkpointed(distiller.modules, settings.checkpointing))
        stack.enter_context(trained_attention(distiller.modules.values(), parallel.device))
        stack.enter_context(compiled([*distiller.modules.values(), *distiller.frozen.values()], settings.compile))
        user = stack.enter_context(patience())
        progress = stack.enter_context(bar(title, settings.steps, run.step, show=show))
        over = False
        while run.step < settings.steps and run.history.stopped is None and not over:
            line = _step(run, distiller, batches)
            verdict = _judge(run, guard, line)
            run.losses.write(line)
            progress(run.step, "  ".join(f"{name} {loss:.4g}" for name, loss in line["loss"].items()))
            if watch is not None:
                watch(run.step, run.averages)
                run.release()
            if verdict is not None:
                _obey(run, verdict, show)
            if run.step % settings.save_every == 0 and run.step != run.saved:
                run.save()
            over = parallel.any(user.over)
        if run.step != run.saved:
            run.save()
        averages, history = run.take(), run.history
    finished = run.step == settings.steps and history.stopped is None
    return Trained(run.step, finished, averages, history.best, history.stopped)


def _step(run: Run, distiller: Distiller[Batch], batches: Callable[[int], Batch]) -> dict[str, Any]:
    """All updates of one step; returns its line of `losses.jsonl`. Tensors are read at its end, all at once."""
    start, settings, parallel = time.perf_counter(), run.settings, run.parallel
    method = distiller.at(run.step, settings.steps) if isinstance(distiller, Paced) else distiller
    numbers = range(parallel.rank, run.batches, parallel.size)  # of this process's batches within the step
    running = {n: method.updates(batches(run.fresh * run.batches + n), _draws(run, n)) for n in numbers}
    modules = [*distiller.modules.values(), *distiller.frozen.values()]
    losses: dict[str, Tensor] = {}
    norms: dict[str, Tensor] = {}
    for turn in count():
        with gathered(modules, parallel):
            name, loss = _backward(run, running, turn)
        if name is None:
            break
        losses[name], norms[name] = loss, run.apply(name)
    if not losses:
        raise FewstepError(f"{type(distiller).__name__} gave nothing to minimise at step {run.step + 1}.")
    parallel.same_buffers([*run.modules.values(), *run.averages.values()])
    values = torch.stack([one.double() for one in (*losses.values(), *norms.values())])
    found = parallel.mean(values).tolist()
    rate = settings.rate_at(run.step) * run.history.rate
    run.step += 1
    return {
        "step": run.step,
        "loss": dict(zip(losses, found, strict=False)),
        "gradient": dict(zip(norms, found[len(losses) :], strict=True)),
        "rate": rate,
        "seconds": round(time.perf_counter() - start, 4),
    }


def _draws(run: Run, number: int) -> torch.Generator:
    """For the random numbers of a step's batch, whichever process has it."""
    return generator(run.settings.seed, "step", run.fresh, *([number] if run.batches > 1 else []))


def _backward(run: Run, running: Mapping[int, Iterator[Update]], turn: int) -> tuple[str | None, Tensor]:
    """The gradients of the next update, averaged over this process's batches; its name (None at the end) and loss."""
    settings, parallel = run.settings, run.parallel
    device = device_of(next(iter(run.modules.values())))
    names: list[str | None] = []
    total = torch.zeros((), device=device)
    for number, updates in running.items():
        torch.manual_seed(derive(settings.seed, "global", run.fresh, number, turn))  # for dropout
        with autocast(device, settings.precision):
            update = next(updates, None)
        names.append(None if update is None else update.name)
        if names[-1] != names[0]:
            raise FewstepError(
                f"The batches of step {run.step + 1} must give the same updates in the same order. "
                f"Got {names[0]!r} of one and {names[-1]!r} of another."
            )
        parallel.agree(f"the update {names[-1]!r}")
        if update is not None:
            loss = update.loss / len(running)
            loss.backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
        del update  # and with it the activations, before the next batch makes its own
    return names[0], total


def _judge(run: Run, guard: Guard | None, line: Mapping[str, Any]) -> Verdict | None:
    """The guard's verdict after a step, if it gives one.

    Raises:
        FewstepError: a gradient is not finite, and there is no guard.
    """
    broken = [name for name, norm in line["gradient"].items() if not math.isfinite(norm)]
    if guard is None:
        if broken:
            raise FewstepError(
                f"The gradient of {broken[0]!r} is {line['gradient'][broken[0]]} at step {run.step} of {run.folder}; "
                "take a lower rate. The last checkpoint is whole."
            )
        return None
    if broken:
        now = Measurement(run.step, finite=False)
    else:
        run.history = guard.heard(run.history, line["loss"])
        if not guard.due(run.step) and run.step < run.settings.steps:
            return None
        now = guard.measure(run.step, run.averages)
        run.release()
    verdict = run.parallel.from_first(guard.decide(run.history, now))
    run.judged.write({**asdict(now), "action": verdict.action, "reason": verdict.reason, "rate": verdict.history.rate})
    run.verdicts += 1
    return verdict


def _obey(run: Run, verdict: Verdict, show: bool) -> None:
    run.history = verdict.history
    if verdict.action == "back":
        run.go_back(verdict.history)
    elif verdict.action != "go on":
        run.save()
    if show and verdict.action in ("back", "stop"):
        print(verdict.reason)
