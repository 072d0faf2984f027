"""Adversarial post-training (APT, arXiv 2501.08316): the student's samples against real ones, judged by a network.

The judge is a copy of the denoiser with a head, and all of it is trained: it reads samples and conditions already. It
sees noised samples, so that it can't go by what only the last pixel tells. To be right, a sample must be real and its
condition its own (arXiv 1605.04396, section 4.2: real samples under another's condition are wrong), so the student
learns to answer, and not only to look real. In the place of the paper's penalty on slopes stands the noise.

Beside the judge's pull there may be that of distribution matching (`dmd2`): the judge alone brings what is asked for
and leaves marks of its own; scores alone draw clean, and plain.

What teaches the judge most are near misses: data in pairs that differ in one thing, each one's condition wrong for the
other. A blend of the two, the ghost of a thing that a student of few steps draws where it can't decide, is wrong too.
Before the student moves, the judge learns for a while alone; and what one has learnt serves other students too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.distill.data import conditions
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Update
from fewstep.distill.engine.roles import Swappable
from fewstep.distill.methods.backward import Sampling, noised
from fewstep.distill.methods.discriminator import tap_paths, tapped, tokens
from fewstep.distill.methods.dmd2 import DMD2, descend
from fewstep.distill.methods.scores import Levels, held
from fewstep.errors import InputError, bad_value

BLENDED = 0.25  # of the wrong samples


class Head(nn.Module):
    """What is made of a feature: (batch, tokens, channels) -> logits (batch,). One token may be enough to be wrong, and
    how many there are of a thing is a sum: so it sees mean, largest and mean square over the tokens."""

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.token = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width), nn.SiLU())
        self.whole = nn.Sequential(nn.Linear(3 * width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, feature: Tensor) -> Tensor:
        each = self.token(feature)
        logits: Tensor = self.whole(torch.cat([each.mean(1), each.amax(1), each.square().mean(1)], 1))
        return logits[:, 0]


@dataclass(frozen=True, eq=False)
class Judge:
    """A denoiser of its own, to be trained, the name of the module whose output it goes by, and a head on that.

    `module` is all that is trained: the denoiser's and the head.
    """

    denoiser: Swappable
    feature: str
    head: Head
    module: nn.Module

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """Logits (batch,) that x_t (batch, …), noised to t (batch,), is real and answers its condition."""
        (found,) = tapped(self.denoiser, (self.feature,), x_t, t, cond)[1]
        logits: Tensor = self.head(tokens(found.float()))
        return logits.float()

    @classmethod
    def over(cls, denoiser: Swappable, batch: PathBatch, feature: str = "", seed: int = 0) -> Judge:
        """One that has learnt nothing, with a new head on what the denoiser's module of this name returns; without a
        name, its last block."""
        x0, feature = batch.states[:, -1], feature or tap_paths(denoiser.module, 1)[0]
        with torch.no_grad():
            (found,) = tapped(denoiser, (feature,), x0, denoiser.schedule.end, batch.cond)[1]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            head = Head(tokens(found).shape[2]).to(x0.device)
        return cls(denoiser, feature, head, nn.ModuleList([denoiser.module, head]))


@dataclass(frozen=True, eq=False)
class APT:
    """Adversarial post-training, of a student that is not far from its end already.

    Attributes:
        student: see `roles`.
        judge: starts best from the teacher's weights.
        rollout: how the student is sampled; see `backward.Rollout`.
        alone: the part of the run, at its beginning, in which only the judge learns, to tell conditions apart; 1 leaves
            the student as it is.
        matching: distribution matching of the same student, without a discriminator; None for none.
        weight: of its pull beside the judge's.
        levels: of the noise at which the judge sees samples; where there is much, nobody can tell.
        moves: whether the student does; see `at`.

    Raises:
        InputError: `alone` is not in [0, 1], or a `weight` is not above 0.
    """

    student: Swappable
    judge: Judge
    rollout: Sampling
    alone: float = 0.0
    matching: DMD2 | None = None
    weight: float = 0.7
    levels: Levels = field(default_factory=lambda: Levels(0.02, 0.7))
    moves: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.alone <= 1:
            raise InputError(bad_value("alone", "APT", "in [0, 1], a part of the iterations", self.alone))
        if not self.weight > 0:
            raise InputError(bad_value("matching", "APT", "0 or above", self.weight))

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        critic = {} if self.matching is None else {"critic": self.matching.critic.module}
        return {"student": self.student.module, **critic, "judge": self.judge.module}

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {} if self.matching is None else self.matching.frozen

    def at(self, step: int, steps: int) -> APT:
        """Itself at a step: the student stands still as long as the judge is alone."""
        return replace(self, moves=step >= self.alone * steps)

    def updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        made = None
        if self.moves:
            if self.matching is not None:
                yield from self.matching.critic_updates(batch, generator)
            made = self.rollout.sample(self.student, batch, generator)
            yield Update("student", self.student.module, descend(made, self.pull(made, batch.cond, generator)))
            made = made.detach()
        yield Update("judge", self.judge.module, self.judge_loss(batch, made, generator))

    def pull(self, made: Tensor, cond: Any, generator: torch.Generator) -> Tensor:
        """The way that raises the loss of the student's samples (batch, …) fastest: shape of `made`.

        The judge's is that of log(1 + e^−logit), its logit's slopes scaled to a root mean square of 1 over the batch,
        as the difference of scores about is: what is right already is left alone.
        """
        with torch.enable_grad(), held(self.judge.module):
            x = made.detach().requires_grad_(True)
            logits = self._judged(x, cond, generator)
            (slopes,) = torch.autograd.grad(logits.sum(), x)
        wrong = torch.sigmoid(-logits.detach()).view(-1, *[1] * (x.dim() - 1))
        pull = -wrong * slopes / slopes.square().mean().sqrt().clamp(min=1e-8)
        if self.matching is None:
            return pull
        return pull + self.weight * self.matching.matched(made.detach(), cond, generator)[2]

    def judge_loss(self, batch: PathBatch, made: Tensor | None, generator: torch.Generator) -> Tensor:
        """Cross-entropy of real samples, and of what is wrong: real ones under another's condition or blended with it,
        and the student's, which count half each. A scalar."""
        x0 = batch.states[:, -1]
        right = F.softplus(-self._judged(x0, batch.cond, generator)).mean()
        wrong = [F.softplus(self._judged(*wronged(x0, batch.cond, generator), generator)).mean()]
        wrong += [] if made is None else [F.softplus(self._judged(made, batch.cond, generator)).mean()]
        return right + torch.stack(wrong).mean()

    def _judged(self, x: Tensor, cond: Any, generator: torch.Generator) -> Tensor:
        t = self.levels.draw(self.student.schedule, len(x), generator)
        return self.judge(noised(self.student.schedule, x, t, generator), t, cond)


def wronged(x0: Tensor, cond: Any, generator: torch.Generator) -> tuple[Tensor, Any]:
    """Half a batch of real samples (batch, …) that do not answer their condition: each has that of its neighbour, or
    its own and is blended with it. Neighbours are 2i and 2i + 1.

    Raises:
        InputError: a batch of one.
    """
    if len(x0) < 2:
        raise InputError(bad_value("batch", "APT", "at least 2, as samples are held against each other", len(x0)))
    told = conditions.rows(cond)
    rows = torch.arange(max(2, len(x0) // 4 * 2))
    blended = torch.rand(len(rows), generator=generator) < (BLENDED if told else 1.0)
    strength = 0.3 + 0.4 * torch.rand(len(rows), generator=generator)
    x, other = x0[rows.to(x0.device)], x0[(rows ^ 1).to(x0.device)]
    part = torch.where(blended, strength, 0.0).to(x0).view(-1, *[1] * (x0.dim() - 1))
    asked = torch.where(blended, rows, rows ^ 1)
    given = {name: value[asked.to(value.device)] for name, value in told.items()}
    return torch.lerp(x, other, part), conditions.rebuild(cond, given)
