"""Schedulers that noise x0 anew at each step (diffusers' `stochastic_sampling`), as of some few-step students."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def renoises(scheduler: Any) -> bool:
    """Whether it draws noise at each step; False for what is no scheduler."""
    return bool(getattr(getattr(scheduler, "config", None), "stochastic_sampling", False))


@contextmanager
def seeded_steps(scheduler: Any, generator: torch.Generator | list[torch.Generator] | None) -> Iterator[None]:
    """Inside, a scheduler that adds noise at each step draws it from the call's generator, where its pipeline does not
    say so itself: most give theirs to the first noise alone."""
    if generator is None or not renoises(scheduler):
        yield
        return
    step, own = scheduler.step, vars(scheduler).get("step")

    @functools.wraps(step)
    def seeded(*args: Any, **kwargs: Any) -> Any:
        return step(*args, **{"generator": generator, **kwargs})

    scheduler.step = seeded
    try:
        yield
    finally:
        del scheduler.step
        if own is not None:
            scheduler.step = own


@contextmanager
def along_the_flow(pipe: Any) -> Iterator[None]:
    """Inside, such a scheduler of the pipeline takes Euler's steps: its denoiser is the same."""
    scheduler: Any = getattr(pipe, "scheduler", None)
    if not renoises(scheduler):
        yield
        return
    pipe.scheduler = type(scheduler).from_config(scheduler.config, stochastic_sampling=False)
    try:
        yield
    finally:
        pipe.scheduler = scheduler
