"""The state of a run: weights, averages, optimizers and what a guard knows; saved, resumed, and gone back to."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from fewstep.distill.engine import checkpoint, optimizers
from fewstep.distill.engine.journal import Journal
from fewstep.distill.engine.parallel import Parallel
from fewstep.distill.engine.settings import UNLIKE, Settings
from fewstep.distill.engine.sharding import check_whole, filled, hollow, release, shard
from fewstep.distill.watching.guard import Guard, History
from fewstep.errors import CheckpointError, InputError


def take_averages(folder: Path, modules: Mapping[str, nn.Module]) -> None:
    """Fill modules with the averages that another training's newest checkpoint keeps under these names.

    Raises:
        InputError: the folder is none of a training, or of one that trained no such modules.
    """
    found = checkpoint.saved(folder)
    if not found:
        raise InputError(f"{folder} holds no checkpoints of a training: its folder is named like run/1-kd.")
    try:
        checkpoint.load(found[-1], {_average(name): module for name, module in modules.items()})
    except CheckpointError as error:
        raise InputError(f"{folder} trained no {' or '.join(modules)} like this one: {error}") from error


class Run:
    """The mutable state of a run: everything that a checkpoint holds.

    Attributes:
        step: steps that were taken.
        saved: the step of the newest checkpoint.
        counts: updates so far, by name.
        history: what the guard heard and decided.
        verdicts: lines of `guard.jsonl`.

    Raises:
        InputError: a rate for a module that there is not, an optimizer that can't train one of them, or one that is
            sharded already.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        modules: Mapping[str, nn.Module],
        frozen: Mapping[str, nn.Module],
        facts: Mapping[str, Any],
        guard: Guard | None,
        parallel: Parallel,
    ) -> None:
        settings.check_names(modules)
        check_whole(modules)
        self.folder, self.settings, self.modules, self.parallel = folder, settings, modules, parallel
        policy = None if guard is None else asdict(guard.policy)
        # Two processes, or one that takes two batches a step, are the same run: only the product must stay.
        self.batches = settings.accumulate * parallel.size
        self._identity = _identity(settings, {**facts, "guard": policy, "batches a step": self.batches})
        parallel.same_start(modules.values())
        self.averages: Mapping[str, nn.Module] = {
            name: copy.deepcopy(module).requires_grad_(False) for name, module in modules.items()
        }
        self._hollow: dict[str, nn.Module] = {}
        if parallel.kind == "fsdp":
            self._shard(frozen)
        options = optimizers.Options(settings.rate, settings.betas, settings.weight_decay)
        self.optimizers = {name: optimizers.build(settings.optimizer, one, options) for name, one in modules.items()}
        self._trained = {name: [p for p in one.parameters() if p.requires_grad] for name, one in modules.items()}
        self.step = self.saved = self.verdicts = 0
        self.counts = dict.fromkeys(modules, 0)
        self.history = History()
        self.losses = Journal(folder / "losses.jsonl", writing=parallel.first)
        self.judged = Journal(folder / "guard.jsonl", writing=parallel.first)

    @property
    def fresh(self) -> int:
        """The number of this step's batches and random draws: the step's, and another one after each going back."""
        return self.step + self.history.backs * self.settings.steps

    def _shard(self, frozen: Mapping[str, nn.Module]) -> None:
        if self.settings.optimizer == "muon":
            raise InputError("Muon makes whole matrices orthogonal, and fsdp cuts them: use adamw, or ddp.")
        if self.settings.compile:
            raise InputError("Compiled networks can't be sharded: turn 'compile' off, or use ddp.")
        self._hollow = {name: hollow(module) for name, module in self.averages.items()}
        shard({**self.modules, **self._averages}, self.parallel)
        if not self.parallel.whole:  # a teacher that an earlier training has sharded stays as it is
            shard({name: one for name, one in frozen.items() if not isinstance(one, FSDPModule)}, self.parallel)

    @property
    def _averages(self) -> dict[str, nn.Module]:
        return {_average(name): module for name, module in self.averages.items()}

    @property
    def _state(self) -> dict[str, Any]:
        guarded = {"guard": asdict(self.history), "verdicts": self.verdicts}
        return {"identity": self._identity, "counts": self.counts, **guarded}

    def save(self) -> None:
        files, best = {**self.modules, **self._averages}, self.history.best
        keep = () if best is None else (best,)
        checkpoint.save(self.folder, self.step, files, self.optimizers, self._state, keep=keep, parallel=self.parallel)
        self.saved = self.step

    def resume(self) -> None:
        """Take up the newest checkpoint, if there is one, and forget what was logged after it."""
        if self.parallel.first:
            checkpoint.clean(self.folder)
        self.parallel.wait()
        found = checkpoint.saved(self.folder)
        if found:
            state = checkpoint.read_state(found[-1])
            self._check_identity(state["identity"])
            self._load(found[-1], state)
            self.history, self.verdicts = History(**state["guard"]), state["verdicts"]
        self.losses.cut(self.step)
        self.judged.cut(self.verdicts)

    def go_back(self, history: History) -> None:
        """To the best checkpoint, with this history; the losses logged after it are forgotten."""
        assert history.best is not None
        best = checkpoint.folder(self.folder, history.best)
        self._load(best, checkpoint.read_state(best))
        self.history = history
        if self.parallel.first:
            checkpoint.go_back(self.folder, self.step, self._state)
        self.parallel.wait()
        self.losses.cut(self.step)

    def _load(self, place: Path, state: Mapping[str, Any]) -> None:
        checkpoint.load(place, {**self.modules, **self._averages}, self.optimizers)
        self.step, self.saved, self.counts = state["step"], state["step"], state["counts"]

    def _check_identity(self, before: Mapping[str, Any]) -> None:
        now = self._identity
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                raise InputError(
                    f"{self.folder} holds a run with {name} = {before.get(name)!r}, this one has {now.get(name)!r}; "
                    "take the same settings to go on with it, or another folder."
                )

    def apply(self, name: str) -> Tensor:
        """One optimizer step and one step of the average, by the gradients at hand.

        Returns the norm of the gradient before clipping, a scalar: read later, so that nothing waits for the GPU.
        """
        parameters = self._trained[name]
        self.parallel.average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.clip)
        for optimizer in self.optimizers[name]:
            for group in optimizer.param_groups:
                group["lr"] = self.settings.rate_at(self.step, name) * self.history.rate
            optimizer.step()
        for trained in self._trained.values():  # all: a loss may have reached through another trained module
            for p in trained:
                p.grad = None
        self._average(name)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    @torch.no_grad()
    def _average(self, name: str) -> None:
        self.counts[name] += 1
        n, source, target = self.counts[name], self.modules[name], self.averages[name]
        decay = min(self.settings.ema, (1 + n) / (10 + n))
        torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), 1 - decay)
        for kept, buffer in zip(target.buffers(), source.buffers(), strict=True):
            kept.copy_(buffer)

    def release(self) -> None:
        """After others ran the averages: what sharded ones gathered is let go."""
        if self._hollow:
            release(self.averages.values())

    def close(self) -> None:
        self.losses.close()
        self.judged.close()

    def take(self) -> Mapping[str, nn.Module]:
        """The averages to hand out: the best checkpoint's where a guard kept one; whole and on the CPU if sharded."""
        best = self.history.best
        if best is not None and best != self.step:
            checkpoint.load(checkpoint.folder(self.folder, best), self._averages)
        if self._hollow:
            return {name: filled(self._hollow[name], module) for name, module in self.averages.items()}
        return self.averages


def _average(name: str) -> str:
    """What a checkpoint calls the average of a module."""
    return f"{name}.average"


def _identity(settings: Settings, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What must not differ between the parts of one run; as JSON would give it back."""
    value: dict[str, Any] = json.loads(json.dumps({**asdict(settings), **facts}))
    return {name: one for name, one in value.items() if name not in UNLIKE}
