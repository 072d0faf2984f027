"""What stands in for a denoiser where only the arguments of its calls are asked for: a prompt costs no pass of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.models.tracing.leaves import get, put
from fewstep.models.tracing.record import Call
from fewstep.models.tracing.stages import CallForm


@dataclass(frozen=True)
class Understudy:
    """Answers the calls of a step as they were traced, with random numbers: so the guidance that is made of these can
    still be told from another.

    Attributes:
        calls: of the traced step, in their order.
        forms: theirs.
    """

    calls: Sequence[Call]
    forms: Sequence[CallForm]

    def __call__(self, number: int, args: Mapping[str, Any]) -> Any:
        """The output of the step's call of this number; None where only the denoiser knows its form: samples of another
        size than the traced ones, another order of calls, an output that is no tuple."""
        if number >= len(self.calls):
            return None
        traced, form = self.calls[number], self.forms[number]
        like, before = get(traced.output, form.output.path), _samples(traced.args, form)
        now = _samples(args, form)
        if isinstance(traced.output, Mapping) or before is None or now is None or before[1] != now[1]:
            return None
        if isinstance(like, list):
            return put(traced.output, form.output.path, [torch.randn_like(like[0]) for _ in range(now[0])])
        made = torch.randn(now[0], *like.shape[1:], dtype=like.dtype, device=like.device)
        return put(traced.output, form.output.path, made)


def _samples(args: Mapping[str, Any], form: CallForm) -> tuple[int, tuple[int, ...]] | None:
    """How many samples a call is given, and the shape of one."""
    try:
        x = get(args, form.x.path)
    except (LookupError, TypeError):
        return None
    if isinstance(x, list):
        return (len(x), tuple(x[0].shape)) if len({one.shape for one in x}) == 1 else None
    return (len(x), tuple(x.shape[1:])) if isinstance(x, Tensor) and x.dim() else None
