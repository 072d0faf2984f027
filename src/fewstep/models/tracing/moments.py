"""The recorded steps as a solver sees them: x, what the scheduler was given, and where that led."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fewstep.errors import TraceError
from fewstep.models.tracing.leaves import tensors
from fewstep.models.tracing.record import Call, Step


@dataclass(frozen=True)
class Moment:
    """One step: `x` (batch, …) at the denoiser, `model_output` as given to the scheduler, `result` the next x."""

    x: Tensor
    model_output: Tensor
    result: Tensor
    calls: tuple[Call, ...]
    step_args: Mapping[str, Any]


def moments_of(steps: Sequence[Step], pipeline: str) -> tuple[list[Moment], int]:
    """The moments of a run and the fold: how often the scheduler's batch repeats the same samples.

    Raises:
        TraceError: too few steps to check anything, a step without a denoiser call, or latents changed between steps.
    """
    if len(steps) < 3:
        raise TraceError(f"A trace needs at least 3 steps, to check on one what it found on others. Got {len(steps)}.")
    _check(steps, pipeline)
    fold = 2 if all(_folded(step) for step in steps) else 1
    return [_moment(step, fold) for step in steps], fold


def fold_of(tensor: Tensor, fold: int) -> Tensor:
    """One of the repeats."""
    return tensor[: len(tensor) // fold]


def _moment(step: Step, fold: int) -> Moment:
    assert step.result is not None
    x, model_output, result = (fold_of(tensor, fold) for tensor in (step.sample, step.model_output, step.result))
    return Moment(x, model_output, result, step.calls, step.args)


def _check(steps: Sequence[Step], pipeline: str) -> None:
    for i, step in enumerate(steps):
        if not step.calls:
            raise TraceError(f"{pipeline} called no denoiser before its scheduler's step {i + 1}.")
        if step.sample.shape != steps[0].sample.shape or step.model_output.shape != step.sample.shape:
            raise TraceError(
                f"{pipeline} steps on latents of other shapes at step {i + 1}: it has more than one sample."
            )
        before = steps[i - 1].result if i else None
        if before is not None and not _continues(before, step.sample):
            raise TraceError(
                f"{pipeline} changed the latents between steps {i} and {i + 1}, outside its scheduler "
                "(a callback, a mask, or images that are put back)."
            )


def _continues(before: Tensor, sample: Tensor) -> bool:
    if before.shape != sample.shape:
        return False
    coarse = before.to(sample.dtype)
    return bool((coarse == sample).all()) or bool((before == sample.to(before.dtype)).all())


def _folded(step: Step) -> bool:
    """The scheduler steps on twice the same batch, whose halves the denoiser saw under different conditions (DiT)."""
    if len(step.calls) != 1 or len(step.sample) % 2 or not all(_halves_equal(t) for t in _step_tensors(step)):
        return False
    outputs = [value for _, value in tensors(step.calls[0].output) if isinstance(value, Tensor) and value.dim() > 0]
    return any(len(out) == len(step.sample) and not _halves_equal(out) for out in outputs)


def _step_tensors(step: Step) -> Iterator[Tensor]:
    yield step.sample
    yield step.model_output
    if step.result is not None:
        yield step.result


def _halves_equal(tensor: Tensor) -> bool:
    first, second = tensor.chunk(2)
    return bool((first == second).all())
