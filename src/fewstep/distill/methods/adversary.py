"""Adversarial losses: what the student and a discriminator minimise, and one value that says how both are weighted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.distill.engine.precision import uncompiled
from fewstep.distill.methods.discriminator import Discriminator
from fewstep.distill.methods.scores import held
from fewstep.errors import InputError, bad_value

Adversary = Literal["softplus", "hinge"]


def student_adversary(kind: Adversary, made: Tensor) -> Tensor:
    """What the student minimises: a scalar of the logits of its samples.

    softplus: log(1 + e^−l), not saturating (arXiv 1406.2661); hinge: −l (arXiv 1705.02894).
    """
    return F.softplus(-made).mean() if kind == "softplus" else -made.mean()


def discriminator_adversary(kind: Adversary, real: Tensor, made: Tensor) -> Tensor:
    """What the discriminator minimises: a scalar of the logits of real and of made samples.

    At its minimum the logit of softplus is log(p_real / p_made), which is what f-divergences need.
    """
    if kind == "softplus":
        return F.softplus(-real).mean() + F.softplus(made).mean()
    return F.relu(1 - real).mean() + F.relu(1 + made).mean()


def r1(logits: Tensor, features: Sequence[Tensor]) -> Tensor:
    """Mean over samples and logits of the squared slope of logits (batch, n) in the features they come from: a scalar.

    The penalty of arXiv 1801.04406, taken at the heads' inputs as in arXiv 2311.17042, section 3.2, so that nothing is
    differentiated twice but the heads. Where each logit depends on its own features, which it does here.
    """
    slopes = torch.autograd.grad(logits.sum(), list(features), create_graph=True)
    return torch.stack([slope.square().flatten(1).sum(dim=1) for slope in slopes]).sum(dim=0).mean() / logits.shape[1]


@dataclass(frozen=True, eq=False)
class Gan:
    """A discriminator and its part in a method.

    Attributes:
        discriminator: see `FeatureDiscriminator.over` and `OwnDiscriminator`.
        weight: of its judgement in the student's loss; 1e-3 to 3e-2 in DMD2.
        critic_weight: of its loss in the critic's, where its features are the critic's own: DMD2 trains these with the
            heads, by 1e-2. 0 leaves them to denoising.
        kind: "softplus" or "hinge".
        r1: weight of the penalty on slopes at real samples.

    Raises:
        InputError: a value out of its range.
    """

    discriminator: Discriminator
    weight: float = 3e-3
    critic_weight: float = 0.0
    kind: Adversary = "softplus"
    r1: float = 0.0

    def __post_init__(self) -> None:
        rules = {
            "weight": (self.weight > 0, "above 0"),
            "critic_weight": (self.critic_weight >= 0, "0 or above"),
            "kind": (self.kind in get_args(Adversary), f"one of {get_args(Adversary)}"),
            "r1": (self.r1 >= 0, "0 or above"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(bad_value(name, "the discriminator", rule, getattr(self, name)))

    @property
    def module(self) -> nn.Module:
        return self.discriminator.module

    def judge(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """Logits (batch, n) whose gradient reaches x_t (batch, …) and no weights."""
        backbone = self.discriminator.backbone
        with held(self.module, *([] if backbone is None else [backbone])):
            return self.discriminator.logits(self.discriminator.features(x_t, t, cond), t, cond)

    def student_loss(self, logits: Tensor) -> Tensor:
        """Weighted: what `judge` says of the student's samples, as a scalar."""
        return self.weight * student_adversary(self.kind, logits)

    def compare(self, real_t: Tensor, made_t: Tensor, t: Tensor, cond: Any) -> Compared:
        """Real and made samples, noised to the same t (batch,); features have a gradient only for `critic_weight`."""
        with torch.set_grad_enabled(self.critic_weight > 0):
            of_real, of_made = (self.discriminator.features(x_t.detach(), t, cond) for x_t in (real_t, made_t))
        return Compared(self, of_real, of_made, t, cond)


@dataclass(frozen=True, eq=False)
class Compared:
    """Real and made samples as a discriminator sees them."""

    gan: Gan
    real: list[Tensor]
    made: list[Tensor]
    t: Tensor
    cond: Any

    def critic_loss(self) -> Tensor:
        """Weighted: the discriminator's loss for the network whose features these are; its own weights are held."""
        with held(self.gan.module):
            return self.gan.critic_weight * self._loss(self.real, self.made)

    def discriminator_loss(self) -> Tensor:
        """The discriminator's loss for its own weights, R1 included; the features are taken as they are."""
        real, made = ([one.detach() for one in features] for features in (self.real, self.made))
        if self.gan.r1 == 0:
            return self._loss(real, made)
        real = [one.requires_grad_() for one in real]
        with uncompiled(self.gan.module):  # compiled modules can't be differentiated twice
            of_real = self.gan.discriminator.logits(real, self.t, self.cond)
        return self._loss(real, made) + self.gan.r1 * r1(of_real, real)

    def _loss(self, real: list[Tensor], made: list[Tensor]) -> Tensor:
        of_real, of_made = (self.gan.discriminator.logits(one, self.t, self.cond) for one in (real, made))
        return discriminator_adversary(self.gan.kind, of_real, of_made)
