"""The calibration run: the pipeline computes everything, and what changed between its steps is written down."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.calibrate.calibration import Calibration, Change
from fewstep.calibrate.signal import change
from fewstep.calibrate.signature import effective_call, signature
from fewstep.calibrate.stack import StackWatch, Streams, Visit
from fewstep.models.model import Model

STRIDES = 4  # a step is compared with as many before it: what a run in fewer steps would see
CALLBACKS = ("callback_on_step_end", "callback", "callback_steps")


def calibrate(pipe: Any, *calls: Mapping[str, Any]) -> Calibration:
    """Run the pipeline in full, once for each of `calls` (its keyword arguments; the prompt among them), and fit
    nothing yet.

    All calls must agree in guidance and size: the signature is that of the first. Their generators are left as they
    were. Denoiser branches are kept apart. Nothing stays on the pipeline.
    """
    model, recorder = Model(pipe), Recorder()
    watch = StackWatch(model, recorder).install()
    try:
        for call in calls:
            run_quietly(pipe, call)
            watch.forget()
    finally:
        watch.remove()
    steps = [effective_call(model, call).get("num_inference_steps") for call in calls]
    return Calibration(signature(model, calls[0]), tuple(recorder.changes), {"runs": len(calls), "steps": steps})


def run_quietly(pipe: Any, call: Mapping[str, Any]) -> None:
    """Call the pipeline for what its denoisers do: nothing is decoded, nobody is told, no random state moves on."""
    quiet = {name: value for name, value in call.items() if name not in CALLBACKS}
    generators = _generators(call.get("generator"))
    states = [generator.get_state() for generator in generators]
    global_state = torch.get_rng_state()
    try:
        pipe(**{**quiet, "output_type": "latent"})
    finally:
        torch.set_rng_state(global_state)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _generators(given: Any) -> list[torch.Generator]:
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]


@dataclass(frozen=True)
class Seen:
    """What one step left behind."""

    sigma: float
    signal: tuple[Tensor, ...]
    residuals: Mapping[str, Streams]


class Recorder:
    """A policy of `StackWatch` that never skips and writes down every change over up to `STRIDES` steps."""

    def __init__(self) -> None:
        self.changes: list[Change] = []

    def start(self) -> deque[Seen]:
        return deque(maxlen=STRIDES)

    def reuse(self, visit: Visit, state: deque[Seen]) -> None:
        return None

    def computed(self, visit: Visit, state: deque[Seen]) -> None:
        assert visit.signal is not None
        assert visit.output is not None
        for seen in state:
            self.changes.append(
                Change(
                    visit.denoiser,
                    visit.branch,
                    seen.sigma,
                    visit.step.sigma,
                    change(visit.signal, seen.signal),
                    reuse_error(visit.residuals, seen.residuals, visit.output),
                )
            )
        state.append(Seen(visit.step.sigma, visit.signal, visit.residuals))


def reuse_error(new: Mapping[str, Streams], old: Mapping[str, Streams], output: Tensor) -> float:
    """What using the residuals `old` for `new` does to the stack's output: mean|difference| over the hidden streams of
    all block lists, relative to mean|output|."""
    difference = sum(float((new[path]["hidden"] - old[path]["hidden"]).float().abs().mean()) for path in new)
    size = float(output.float().abs().mean())
    return difference / size if size > 0 else 0.0
