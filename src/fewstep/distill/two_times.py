"""A second time for any denoiser, which makes it a flow map: from x_t straight to x_r, for every r ≤ t.

`TwoTimes(module)` gives a copy of a network the length t − r of the step, by an embedding that is added where its first
time's embedding leaves the network's time embedder. The added part ends in zeros, so at first it is exactly the network
that it was made of. With it a student predicts the average velocity u(x_t, r, t) of a flow (arXiv 2505.13447):

    x_r = x_t − (t − r)·u(x_t, r, t)

    student = student_of(teacher, TwoTimes(teacher.module))
    u = average_velocity(student, x_t, t, r, cond)
    x0 = euler(along(student, times), noise, times, cond)      # any number of steps
    plain = fold(student, times, noise, cond)                  # for these times: a network of the teacher's own class

`fold` is how such a student lives in plain diffusers, where (0.42.1) only AnyFlow's own networks take a second time:
at a fixed list of times r follows from t, and what is added can be put into the weights of the time embedder.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.diffusion.schedule import Schedule, Time
from fewstep.distill.engine.roles import Swappable
from fewstep.errors import InputError, bad_value

# What networks call the part that embeds the time, innermost first; those of guidance, sizes and text have other names.
EMBEDDERS = (
    "timestep_embedder",
    "time_embedder",
    "t_embedder",
    "time_embedding",
    "time_step_proj",
    "timestep_proj",
    "time_embed",
)
TOLERANCE = 1e-3  # of the folded network's output, in its own size; float32 rounds more with each block


class Waves(nn.Module):
    """t -> (t, sin πkt, cos πkt for k = 1, 2, 4, 8): shape of `t` with a last axis of 9.

    Slow enough to be differentiated: embeddings of 1000·t, as many networks have, change too fast (arXiv 2410.11081,
    section 4.1).
    """

    SIZE = 9

    def forward(self, t: Tensor) -> Tensor:
        angles = t[..., None] * torch.tensor([math.pi * k for k in (1, 2, 4, 8)], dtype=t.dtype, device=t.device)
        return torch.cat([t[..., None], angles.sin(), angles.cos()], dim=-1)


class TwoTimes(nn.Module):
    """A copy of `module` that is also told how long the step is; called as `module` is.

    The length t − r is given around a call by `over`; without it is 0, where u is the velocity at t itself.

    Raises:
        InputError: no part of the module is known to embed its time.
    """

    def __init__(self, module: nn.Module, width: int = 64) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)
        embedders = time_embedders(self.module)
        self.trunk = nn.Sequential(Waves(), nn.Linear(Waves.SIZE, width), nn.SiLU())
        self.heads = nn.ModuleList([nn.Linear(width, last_linear(part).out_features) for part in embedders.values()])
        self.length = _Length()
        for embedder, head in zip(embedders.values(), self.heads, strict=True):
            for parameter in head.parameters():
                nn.init.zeros_(parameter)
            embedder.register_forward_hook(_Add(self.trunk, head, self.length))
        self.to(next(module.parameters()).device)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    @contextmanager
    def over(self, length: Time) -> Iterator[None]:
        """Calls inside the block are steps of this length t − r, a float or of shape () or (batch,)."""
        before, self.length.value = self.length.value, length
        try:
            yield
        finally:
            self.length.value = before


class _Length:
    """Where `over` leaves the length for the hooks; it is copied with them."""

    value: Time = 0.0


class _Add:
    """A forward hook: the embedder's output, (rows, dim) or (batch, …, dim), and what the length adds to it."""

    def __init__(self, trunk: nn.Module, head: nn.Module, length: _Length) -> None:
        self.trunk, self.head, self.length = trunk, head, length

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + self.added(output).to(output.dtype)

    def added(self, output: Tensor) -> Tensor:
        length = torch.as_tensor(self.length.value).to(output.device, torch.float32).reshape(-1)
        rows: Tensor = self.head(self.trunk(length))
        if len(output) % len(rows) or output.shape[-1] != rows.shape[-1]:
            raise InputError(f"{len(rows)} lengths of steps do not fit a time embedding of {tuple(output.shape)}.")
        if output.dim() == 2:  # a row for each sample, or for each of its tokens
            return rows.repeat_interleave(len(output) // len(rows), dim=0)
        return rows.view(len(rows), *[1] * (output.dim() - 2), -1)


def time_embedders(module: nn.Module) -> dict[str, nn.Module]:
    """The parts that make an embedding of the time, by path: one, or one a block where each block has its own.

    Raises:
        InputError: there is none by a known name.
    """
    for name in EMBEDDERS:
        named = {path: part for path, part in module.named_modules() if path.rpartition(".")[2] == name}
        found = {path: part for path, part in named.items() if any(isinstance(m, nn.Linear) for m in part.modules())}
        if found:
            return found
    raise InputError(
        f"{type(module).__name__} can't be told a second time: it has no time embedder called {', '.join(EMBEDDERS)}."
    )


def last_linear(embedder: nn.Module) -> nn.Linear:
    """The layer that an embedder ends in."""
    return [part for part in embedder.modules() if isinstance(part, nn.Linear)][-1]


def average_velocity(student: Swappable, x_t: Tensor, t: Tensor, r: Tensor, cond: Any) -> Tensor:
    """u(x_t, r, t), the mean of the velocity on the way from r to t; times of shape (batch,), r ≤ t."""
    with two_times(student).over(t - r):
        return student(x_t, t, cond)


def two_times(student: Swappable) -> TwoTimes:
    """The student's network.

    Raises:
        InputError: it is not a `TwoTimes`, or does not predict the velocity of a flow.
    """
    if not isinstance(student.module, TwoTimes):
        kind = type(student.module).__name__
        raise InputError(f"A flow map's student is told two times: make it of TwoTimes(module). Got {kind}.")
    schedule = student.schedule
    if (schedule.kind, schedule.prediction) != ("flow", "flow"):
        got = f"{schedule.kind}, {schedule.prediction}"
        raise InputError(bad_value("schedule", "a flow map", "a flow that predicts its velocity", got))
    return student.module


@dataclass(frozen=True, eq=False)
class _Along:
    student: Swappable
    times: Sequence[float]

    @property
    def schedule(self) -> Schedule:
        return self.student.schedule

    def __call__(self, x_t: Tensor, t: Time, cond: Any = None) -> Tensor:
        i = min(range(len(self.times) - 1), key=lambda k: abs(self.times[k] - float(t)))
        with two_times(self.student).over(self.times[i] - self.times[i + 1]):
            return self.student(x_t, t, cond)


def along(student: Swappable, times: Sequence[float]) -> _Along:
    """The student as a denoiser for these falling times: at each of them it looks ahead to the next."""
    return _Along(student, times)


@torch.no_grad()
def fold(student: Swappable, times: Sequence[float], x: Tensor, cond: Any = None) -> nn.Module:
    """A network of the teacher's own class that is the student at these falling times, and told one time only.

    What the length adds to the embedding of each time is put into the last layer of the time embedder: with h_k its
    input at times[k] and d_k what is added there, W changes by the smallest matrix that takes each h_k to d_k, which is
    there as long as the h_k are linearly independent. Other numbers of steps need a fold of their own.

    Args:
        x: a state of shape (batch, …) to run the network on, with its condition.

    Raises:
        InputError: the folded network differs from the student: too many times, or a layer follows the last one.
    """
    two, looking = two_times(student), along(student, times)
    inputs, wanted = _last_inputs(looking, time_embedders(two.module), times, x, cond)
    plain = _without_hooks(two.module)
    lengths = torch.tensor([t - s for t, s in pairwise(times)], device=x.device)
    for (path, given), head in zip(inputs.items(), two.heads, strict=True):
        layer = last_linear(plain.get_submodule(path))
        added = head(two.trunk(lengths)).double()
        layer.weight += (torch.linalg.pinv(given.double()) @ added).T.to(layer.weight)
    folded = student.with_module(plain)
    for t, right in zip(times[:-1], wanted, strict=True):
        off = float((folded(x, t, cond) - right).abs().max())
        if not off <= TOLERANCE * float(right.abs().max()):  # also for nan
            raise InputError(
                f"{type(plain).__name__} can't hold {len(wanted)} steps in its time embedder: at {t:g} it is off by "
                f"{off:.2g}. Fold fewer steps."
            )
    return plain


def _last_inputs(
    looking: _Along, embedders: Mapping[str, nn.Module], times: Sequence[float], x: Tensor, cond: Any
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """What the last layer of each embedder is given at each time, (steps, inputs), and the student's predictions."""
    seen: dict[str, list[Tensor]] = {path: [] for path in embedders}

    def keep(path: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[path].append(args[0].reshape(-1, args[0].shape[-1])[0])

    handles = [last_linear(e).register_forward_pre_hook(partial(keep, path)) for path, e in embedders.items()]
    try:
        predictions = [looking(x, t, cond) for t in times[:-1]]
    finally:
        for handle in handles:
            handle.remove()
    return {path: torch.stack(rows[:: len(rows) // len(predictions)]) for path, rows in seen.items()}, predictions


def _without_hooks(module: nn.Module) -> nn.Module:
    """A copy that is told one time."""
    plain = copy.deepcopy(module)
    for part in plain.modules():
        for key in [key for key, hook in part._forward_hooks.items() if isinstance(hook, _Add)]:
            del part._forward_hooks[key]
    return plain
