"""A training by steps that saves itself and goes on from there: what the zoo's own models are made with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim import Optimizer

from fewstep.files import replacing

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Steps:
    """A training of `total` steps that saves itself to `path` and goes on from there.

    The rate is constant up to `decay_from` (a part of the run) and falls linearly to 0 after it.
    """

    path: Path
    total: int
    save_every: int
    decay_from: float
    ema: float = 0.0
    warmup: int = 50

    def run(
        self,
        name: str,
        modules: Sequence[nn.Module],
        optimizers: Sequence[Optimizer],
        loss: Callable[[int], Tensor],
    ) -> list[Weights]:
        """Trains `modules` and returns their averaged weights, one state dict each."""
        rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        averages = [{k: v.clone() for k, v in module.state_dict().items()} for module in modules]
        done = self._resume(modules, optimizers, averages)
        parameters = [p for module in modules for p in module.parameters()]
        for step in self._progress(name, done):
            for optimizer, base in zip(optimizers, rates, strict=True):
                for group, rate in zip(optimizer.param_groups, base, strict=True):
                    group["lr"] = rate * self._rate(step)
                optimizer.zero_grad()
            value = loss(step)
            torch.autograd.backward(value)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in optimizers:
                optimizer.step()
            self._average(modules, averages, step)
            if (step + 1) % 10 == 0:
                self._log(step + 1, float(value.detach()))
            if (step + 1) % self.save_every == 0 or step + 1 == self.total:
                self._save(step + 1, modules, optimizers, averages)
        return averages

    def _rate(self, step: int) -> float:
        decay = (1 - step / self.total) / (1 - self.decay_from)
        return min(1.0, (step + 1) / self.warmup, decay)

    def _average(self, modules: Sequence[nn.Module], averages: list[Weights], step: int) -> None:
        keep = min(self.ema, (1 + step) / (10 + step))
        for module, average in zip(modules, averages, strict=True):
            for key, value in module.state_dict().items():
                if value.is_floating_point():
                    average[key].lerp_(value.detach(), 1 - keep)

    def _progress(self, name: str, done: int) -> Iterator[int]:
        with bar() as shown:
            task = shown.add_task(name, total=self.total, completed=done)
            for step in range(done, self.total):
                yield step
                shown.advance(task)

    def _log(self, step: int, value: float) -> None:
        with self.path.with_suffix(".jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "loss": round(value, 5)}) + "\n")

    def _save(
        self,
        step: int,
        modules: Sequence[nn.Module],
        optimizers: Sequence[Optimizer],
        averages: list[Weights],
    ) -> None:
        state = {
            "step": step,
            "modules": [m.state_dict() for m in modules],
            "optimizers": [o.state_dict() for o in optimizers],
            "averages": averages,
        }
        with replacing(self.path) as aside:
            torch.save(state, aside)

    def _resume(
        self,
        modules: Sequence[nn.Module],
        optimizers: Sequence[Optimizer],
        averages: list[Weights],
    ) -> int:
        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True)
        for module, weights in zip(modules, state["modules"], strict=True):
            module.load_state_dict(weights)
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        for average, kept in zip(averages, state["averages"], strict=True):
            average.update(kept)
        return int(state["step"])


def bar() -> Progress:
    """The progress bar of long work: what, how far, how many, how long still."""
    return Progress(*Progress.get_default_columns()[:3], MofNCompleteColumn(), TimeRemainingColumn())
