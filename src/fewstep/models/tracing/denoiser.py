"""`TracedDenoiser`: a pipeline's denoiser as a function of (x_t, t, cond), made from what a trace found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from fewstep.diffusion.schedule import Schedule, Time
from fewstep.models.tracing.cond import Cond
from fewstep.models.tracing.stages import Stage, stage_at


@dataclass(frozen=True, eq=False)
class TracedDenoiser:
    """A `Denoiser`: `denoiser(x_t, t, cond)` is the guided prediction in the terms of `schedule`, shaped as x_t.

    Attributes:
        schedule: what t, x_t and the prediction mean.
        modules: component name -> the module that is called (two of them where a pipeline switches at a time).
        stages: the calls of a step, by time; most pipelines have one stage.
        cond: the conditions of the traced call.
        times: the falling times of the traced call, with the end.
        noise: x_t at times[0] in the traced call, (batch, …); already scaled to its noise level.
        replay_error: the largest difference in latents that the replay found.
        call: the keyword arguments of the traced call.
        switch: the time at and above which the first stage holds, where the pipeline's config tells.
        conditions: makes the Cond of another call; what `condition` uses.
    """

    schedule: Schedule
    modules: Mapping[str, nn.Module]
    stages: tuple[Stage, ...]
    cond: Cond
    times: tuple[float, ...]
    noise: Tensor
    call: Mapping[str, Any]
    conditions: Callable[[Mapping[str, Any]], Cond]
    switch: float | None = None
    replay_error: float = float("inf")

    @property
    def module(self) -> nn.Module:
        """The module of the first stage."""
        return self.modules[self.stages[0].calls[0].name]

    @property
    def weights(self) -> dict[str, float]:
        """Branch -> guidance weight, of the first stage."""
        return dict(self.stages[0].guidance.weights)

    def __call__(self, x_t: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """The guided prediction for x_t of shape (batch, …) at t, a float or of shape () or (batch,).

        Without `cond` the traced call's. A condition of one sample serves a batch.

        Raises:
            TraceError: t is between two stages, where the trace can't tell which denoiser holds.
        """
        stage = stage_at(self.stages, self.switch, t)
        branches = stage.run(self.modules, x_t, t, self.cond if cond is None else cond)
        return stage.guidance(branches).to(x_t.dtype)

    def branch(self, name: str, x_t: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """The prediction of one branch alone (`cond`, `uncond`), otherwise as a call.

        Raises:
            InputError: there is no such branch.
        """
        stage = stage_at(self.stages, self.switch, t).only(name)
        branches = stage.run(self.modules, x_t, t, self.cond if cond is None else cond)
        return stage.guidance(branches).to(x_t.dtype)

    def with_module(self, module: nn.Module | Mapping[str, nn.Module], guided: bool = False) -> TracedDenoiser:
        """The same denoiser over other weights: a student, which without `guided` has only the prompt's branch.

        `module` is one for all, or component name -> module. Its replay error is that of the original.
        """
        modules = dict(module) if isinstance(module, Mapping) else dict.fromkeys(self.modules, module)
        stages = self.stages if guided else tuple(stage.only("cond") for stage in self.stages)
        return replace(self, modules=modules, stages=stages)

    def condition(self, **call: Any) -> Cond:
        """The conditions of another call, for other prompts: the traced call's arguments with these in their place.

        The pipeline runs up to its first scheduler step, without the denoiser where the samples are as large as the
        traced call's.

        Raises:
            TraceError: with these arguments the pipeline calls its denoiser in another way than the traced one.
        """
        return self.conditions(call)
