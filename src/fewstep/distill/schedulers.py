"""A student's steps in diffusers: the times that N steps have, and the scheduler that takes them.

What kind of times they are shows in their ends: a flow's fall from 1 to 0, training timesteps (vp) to −1, and sigmas
(edm) to 0 from far above 1.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from fewstep.diffusion.samplers import flow_times
from fewstep.diffusion.schedule import Kind
from fewstep.errors import InputError, bad_value

TRAINED = 1000  # timesteps of diffusers' flow schedulers, one of which is the last one's time
TOLERANCE = 1e-4  # of times; the schedulers keep them in float32


def times_of(scheduler: Any, kind: Kind, steps: int, shift: float = 1.0) -> tuple[float, ...]:
    """The times of a student of so many steps, falling, with the end.

    A flow's are shifted ones. Others are `scheduler`'s training timesteps from the last on in even strides ("trailing",
    arXiv 2305.08891), so that the first step starts from noise alone.

    Raises:
        InputError: steps that do not divide the training timesteps of a vp schedule.
    """
    if kind == "flow":
        return tuple(flow_times(steps, shift))
    trained = int(scheduler.config.num_train_timesteps)
    if kind == "vp" and trained % steps:
        raise InputError(bad_value("steps", "the student", f"a divisor of the {trained} training timesteps", steps))
    own = _trailing(scheduler, kind, renoise=False)
    own.set_timesteps(steps)
    return steps_taken(own)


def student_scheduler(pipe: Any, times: Sequence[float], *, renoise: bool = False) -> Any:
    """A scheduler whose steps in `pipe` are at these times: Euler's (DDIM's), or with `renoise` x0 noised anew at each.

    `pipe` is the teacher: its scheduler says how the network was trained.

    Raises:
        InputError: times that no scheduler gives, or a renoising one that is not of a flow and of several steps.
    """
    scheduler, kind = pipe.scheduler, kind_of(times)
    if kind != "flow":
        return _trailing(scheduler, kind, renoise=renoise and len(times) > 2)
    from diffusers import FlowMatchEulerDiscreteScheduler

    one_step = len(times) == 2  # any shift will do
    shift = float(getattr(scheduler.config, "shift", 1.0)) if one_step else shift_of(times)
    trained = scheduler.config.num_train_timesteps
    end = None
    if not one_step and not _gives_times(pipe):
        shift, end = _spaced(shift, len(times) - 1, trained), times[-2]
    return FlowMatchEulerDiscreteScheduler(trained, shift=shift, shift_terminal=end, stochastic_sampling=renoise)


def _gives_times(pipe: Any) -> bool:
    """Whether a pipeline spaces the times itself, as Flux does; others tell their scheduler the number alone."""
    return "linspace" in inspect.unwrap(type(pipe).__call__).__code__.co_names


def _spaced(shift: float, steps: int, trained: int) -> float:
    """The shift with which diffusers' own spacing, from 1 to the smallest trained sigma, becomes `flow_times` of
    `shift` when it is stretched to the last of them.

    A shifted time is as far from 1 as i·c / (s − (s − 1)·i·c), where c is the even step: two spacings are stretches of
    each other when (1 − 1/s)·c is the same.
    """
    found = shift
    for _ in range(50):  # the smallest sigma is shifted too
        step = (1 - _shifted(1 / trained, found)) / (steps - 1)
        found = 1 / (1 - (1 - 1 / shift) / (steps * step))
    return found


def steps_taken(scheduler: Any) -> tuple[float, ...]:
    """The times that a scheduler will step through, or has, with the end."""
    if getattr(scheduler, "sigmas", None) is not None:
        return tuple(float(sigma) for sigma in scheduler.sigmas)
    return (*(float(t) for t in scheduler.timesteps), -1.0)


def kind_of(times: Sequence[float]) -> Kind:
    """What kind of schedule these times are of.

    Raises:
        InputError: of none.
    """
    if len(times) < 2 or any(s >= t for t, s in pairwise(times)) or times[-1] not in (0.0, -1.0):
        raise InputError(bad_value("times", "the student", "falling ones, to 0 or −1", tuple(times)))
    if times[-1] == -1.0:
        return "vp"
    return "flow" if times[0] <= 1 + TOLERANCE else "edm"


def shift_of(times: Sequence[float]) -> float:
    """The shift of the times of a flow: those of `flow_times`, or those that diffusers' flow schedulers take when the
    pipeline gives them none, which end with one close to 0. 1 for one step, where every shift does.

    Raises:
        InputError: they are neither.
    """
    if len(times) == 2:
        return 1.0
    steps = len(times) - 1
    even, last = (steps - 1) / steps, 1 / TRAINED
    # A shift multiplies the odds t/(1 − t); where the pipeline gives no times, to the last one twice.
    spaced = {_odds(times[1]) / _odds(even): flow_times(steps, 1.0)[:-1]}
    twice = math.sqrt(_odds(times[-2]) / _odds(last))
    spaced[twice] = torch.linspace(1, float(_shifted(last, twice)), steps, dtype=torch.float64).tolist()
    for shift, unshifted in spaced.items():
        if shift > 0 and all(abs(_shifted(u, shift) - t) <= TOLERANCE for u, t in zip(unshifted, times, strict=False)):
            return shift
    raise InputError(bad_value("times", "the student", "those of a shifted flow from 1 to 0", tuple(times)))


def _odds(t: float) -> float:
    return t / (1 - t) if 0 < t < 1 else 0.0


def _shifted(t: float, shift: float) -> float:
    return shift * t / (1 + (shift - 1) * t)


def check_times(scheduler: Any, wanted: Sequence[float], pipeline: str) -> None:
    """Raises InputError where a pipeline's scheduler has stepped at other times than wanted."""
    used = steps_taken(scheduler)
    far = torch.tensor(used) - torch.tensor(wanted) if len(used) == len(wanted) else torch.tensor([torch.inf])
    if float(far.abs().max()) > TOLERANCE * max(1.0, abs(wanted[0])):
        raise InputError(
            f"{pipeline} with {len(wanted) - 1} steps uses the times {tuple(round(t, 4) for t in used)}, "
            f"and the student was made for {tuple(round(t, 4) for t in wanted)}."
        )


def _trailing(scheduler: Any, kind: Kind, *, renoise: bool) -> Any:
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    if renoise:
        raise InputError(
            "A student that is sampled by 'renoise' in several steps can be written for flow pipelines only: "
            "take a method that is sampled by 'euler', or one step."
        )
    plain = {"timestep_spacing": "trailing", "steps_offset": 1}  # the offset is of other spacings, and warned about
    if kind == "edm":
        ways = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
        return EulerDiscreteScheduler.from_config(scheduler.config, **plain, **dict.fromkeys(ways, False))
    off = {"clip_sample": False, "thresholding": False, "set_alpha_to_one": True}
    return DDIMScheduler.from_config(scheduler.config, **plain, **off)
