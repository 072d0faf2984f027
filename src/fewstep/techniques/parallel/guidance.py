"""Guidance and batch parallelism: the calls that guidance makes in a step, or the samples of a call, over processes.

A pipeline asks its denoiser about each guidance branch in a call of its own, or about all of them in one call of so
many times the samples. In the first case the branches of a step are shared: at the step's first call each process
computes its own, and all exchange what they predict. The step before told which conditioning the calls to come will
carry, and each of them is held against it. In the second case the samples are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import Signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fewstep.calibrate.stack import first_of, with_first
from fewstep.calibrate.steps import EVERY_STEP, Branch, Requests, same
from fewstep.errors import FewstepError
from fewstep.models.tracing.cond import axes_of, samples_of
from fewstep.techniques.parallel.groups import gathered, rank_in, same_enough, shares, size_of

Forward = Callable[..., Any]


@dataclass
class Ahead:
    """What one branch of a request last returned, and what it predicts at a step before the pipeline asked.

    Attributes:
        step: of the prediction.
        given: what the call that asked first was given anew at that step.
    """

    output: Any = None
    prediction: Tensor | None = None
    step: int = -1
    given: dict[str, Any] = field(default_factory=dict)


class SharedSamples:
    """The samples of one denoiser's calls over the processes of a group. The first call is made whole too, and held
    against its parts."""

    def __init__(self, name: str, signature: Signature, group: Any) -> None:
        self._name, self._signature, self._group = name, signature, group
        self._checked = False
        self.facts: dict[str, Any] = {"calls_whole": 0, "calls_shared": 0, "bytes_sent": 0}

    def call(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        """The denoiser's output.

        Raises:
            FewstepError: it does not compute its samples one by one.
        """
        given = self._signature.bind_partial(*args, **kwargs).arguments
        samples, size = sample_count(given), size_of(self._group)
        if samples < size:
            self.facts["calls_whole"] += 1
            return forward(*args, **kwargs)
        parts = shares(samples, size)
        own = parts[rank_in(self._group)]
        output = forward(**samples_of(given, axes_of(given, samples), own.start, own.stop))
        prediction = gathered(first_of(output), [len(part) for part in parts], 0, self._group)
        self.facts["bytes_sent"] += first_of(output)[:1].nbytes * len(parts[0]) * (size - 1)
        self.facts["calls_shared"] += 1
        if not self._checked and not same_enough(first_of(forward(*args, **kwargs)), prediction):
            raise FewstepError(
                f"The {self._name} gives something else for some samples than for all: they can't be shared."
            )
        self._checked = True
        return with_first(output, prediction)


class SharedGuidance:
    """One denoiser's guidance branches over the processes of a group; where one call has them all, its samples."""

    def __init__(self, name: str, signature: Signature, requests: Requests[Ahead], group: Any) -> None:
        self._name, self._signature, self._requests, self._group = name, signature, requests, group
        self._samples = SharedSamples(name, signature, group)
        self.facts = self._samples.facts

    def call(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        """The denoiser's output; errors as for `SharedSamples`."""
        given = self._signature.bind_partial(*args, **kwargs).arguments
        place = self._requests.place(self._name, given)
        branches, state = self._requests.branches(self._name), place.branch.state
        anew = {name: value for name, value in given.items() if name in EVERY_STEP}
        if state.prediction is not None and state.step == place.step.index and same(state.given, anew):
            prediction, state.prediction = state.prediction, None
            return with_first(state.output, prediction)
        if len(branches) > 1 and all(one.state.output is not None for one in branches):
            self._run(forward, anew, branches, place.step.index)
            assert state.prediction is not None
            prediction, state.prediction = state.prediction, None
            return with_first(state.output, prediction)
        # One branch, or the first step, which does not know how many will be asked about: its samples are shared.
        state.output = self._samples.call(forward, *args, **kwargs)
        return state.output

    def _run(self, forward: Forward, anew: dict[str, Any], branches: list[Branch[Ahead]], step: int) -> None:
        """Every branch's prediction at this step, each computed by one process."""
        size, rank = size_of(self._group), rank_in(self._group)
        for i, branch in enumerate(branches):
            if i % size == rank:
                branch.state.output = forward(**{**branch.conditioning, **anew})
                self.facts["calls_shared"] += 1
        for i, branch in enumerate(branches):
            mine = i % size == rank
            prediction = first_of(branch.state.output)
            prediction = prediction.contiguous() if mine else torch.empty_like(prediction)
            dist.broadcast(prediction, group=self._group, group_src=i % size)
            self.facts["bytes_sent"] += prediction.nbytes * (size - 1) * mine
            branch.state.prediction, branch.state.step, branch.state.given = prediction, step, anew


def sample_count(given: Mapping[str, Any]) -> int:
    """Of a call of a denoiser with these arguments: the length of what it denoises."""
    hidden = next(value for name, value in given.items() if name in EVERY_STEP)
    return len(hidden)
