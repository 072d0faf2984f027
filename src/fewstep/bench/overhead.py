"""What fewstep itself costs: a pipeline with an empty recipe on against the plain one."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fewstep.accelerate import accelerate
from fewstep.bench.timing import Run, interleaved, measured, now, speedup
from fewstep.models.model import Model


@dataclass(frozen=True)
class Overhead:
    """Seconds are medians. own: what fewstep's code takes of a call. nfe: denoiser calls in it. part: own / nfe over
    the time of one denoiser call. ratio: empty recipe / plain, whole calls in turn; the machine's noise is in it."""

    own: float
    nfe: float
    denoiser_call: float
    part: float
    plain: float
    empty: float
    ratio: float


class _Clocked:
    """The pipeline, with the time inside its own call kept, so that the rest is fewstep's."""

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.inside = pipe, 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = now()
        output = self.pipe(*args, **kwargs)
        self.inside = now() - start
        return output


def overhead(pipe: Any, call: Mapping[str, Any], rounds: int) -> Overhead:
    """Call `pipe` in turn plain and with an empty recipe on, `rounds` times each, after one call to warm up."""
    pipe(**call)
    denoisers = list(Model(pipe).denoisers.values())
    plain: list[Run] = []
    empty: list[Run] = []
    own: list[float] = []
    for _, name, (run, fewstep_seconds) in interleaved(
        {"plain": lambda _: (_timed(pipe, call, denoisers), 0.0), "empty": lambda _: _own(pipe, call, denoisers)},
        range(rounds),
    ):
        (plain if name == "plain" else empty).append(run)
        own += [fewstep_seconds] if name == "empty" else []
    nfe = statistics.median(run.nfe for run in plain)
    denoiser_call = statistics.median(run.denoiser_seconds / run.nfe for run in plain)
    seconds = [run.seconds for run in plain], [run.seconds for run in empty]
    return Overhead(
        own=statistics.median(own),
        nfe=nfe,
        denoiser_call=denoiser_call,
        part=statistics.median(own) / nfe / denoiser_call,
        plain=statistics.median(seconds[0]),
        empty=statistics.median(seconds[1]),
        ratio=1 / speedup(*seconds),
    )


def _timed(pipe: Callable[..., Any], call: Mapping[str, Any], denoisers: list[nn.Module]) -> Run:
    return measured(lambda: pipe(**call), denoisers, 1)[1]


def _own(pipe: Any, call: Mapping[str, Any], denoisers: list[nn.Module]) -> tuple[Run, float]:
    """The run with the empty recipe on, and how much of it was not the pipeline's."""
    fast = accelerate(pipe, [])
    clocked = fast.pipe = _Clocked(pipe)
    run = _timed(fast, call, denoisers)
    fast.remove()
    return run, run.seconds - clocked.inside
