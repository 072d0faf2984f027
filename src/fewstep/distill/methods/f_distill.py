"""f-distill (arXiv 2502.15681): DMD2 for any f-divergence, by weighting each sample's gradient.

The gradient of D_f(teacher ‖ student) is that of DMD2 times h(r) = f''(r)·r² (theorem 1), r being p_teacher / p_student
at the noised sample. The discriminator knows r: it is exp of its logit. Reverse KL, whose h is 1, is DMD2 itself and
seeks modes; forward KL covers them, at the price of weights of high variance; Jensen–Shannon is in between.

    rkl  h = 1        kl  h = r        js  h = r/(1 + r) = 1 − 1/(1 + r)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Update
from fewstep.distill.engine.roles import device_of
from fewstep.distill.methods.dmd2 import DMD2, OnDMD2
from fewstep.distill.methods.scores import flow_time
from fewstep.errors import InputError, bad_value

Divergence = Literal["rkl", "kl", "js"]

H: dict[str, Callable[[Tensor], Tensor]] = {
    "rkl": torch.ones_like,
    "kl": lambda r: r,
    "js": lambda r: 1 - 1 / (1 + r),
}


def ratio(logits: Tensor, lowest: float = 0.1, highest: float = 20.0) -> Tensor:
    """p_teacher / p_student from logits (batch, n), clipped: (batch,)."""
    return logits.float().mean(dim=1).exp().clamp(lowest, highest)


def updated_means(means: Tensor, ratios: Tensor, bins: Tensor, decay: float) -> Tensor:
    """The running mean ratio of each bin (n,) after these ratios (batch,) in bins (batch,); one without any stays."""
    count = torch.bincount(bins, minlength=len(means)).to(means)
    now = torch.bincount(bins, weights=ratios, minlength=len(means)).to(means) / count.clamp(min=1)
    return torch.where(count > 0, torch.lerp(now, means, decay), means)


@dataclass(frozen=True, eq=False)
class FDistill(OnDMD2):
    """DMD2 with weights. In the mean over the student's samples r is 1 at every noise level, and what the discriminator
    says is made so: r is divided by its running mean in each of some bins of the level. Then h is divided by its mean.

    Attributes:
        dmd2: with a `gan` of softplus, whose logits are what r needs.
        divergence: "rkl", "kl" or "js".
        lowest, highest: r stays within them.
        bins: of u = sigma/(alpha + sigma).
        decay: of the running means, which are kept, and saved, as the discriminator's buffer `mean_ratios`.

    Raises:
        InputError: a value out of its range, or a `dmd2` without such a discriminator.
    """

    dmd2: DMD2
    divergence: Divergence = "js"
    lowest: float = 0.1
    highest: float = 20.0
    bins: int = 10
    decay: float = 0.9

    def __post_init__(self) -> None:
        rules = {
            "divergence": (self.divergence in get_args(Divergence), f"one of {get_args(Divergence)}"),
            "lowest": (0 < self.lowest <= 1, "in (0, 1]"),
            "highest": (self.highest >= 1, "at least 1"),
            "bins": (self.bins >= 1, "at least 1"),
            "decay": (0 <= self.decay < 1, "in [0, 1)"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(bad_value(name, "f-distill", rule, getattr(self, name)))
        if self.dmd2.gan is None or self.dmd2.gan.kind != "softplus":
            raise InputError("f-distill needs a discriminator of kind 'softplus': its logits are the density ratio.")
        heads = self.dmd2.gan.module
        heads.register_buffer("mean_ratios", torch.ones(self.bins, device=device_of(heads)))

    def updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        return self.dmd2.updates(batch, generator, partial(self.dmd2.student_loss, weigh=self.weights))

    def weights(self, logits: Tensor, t: Tensor) -> Tensor:
        """h of each sample, of mean 1, from logits (batch, n) at t (batch,): (batch,). Updates the running means."""
        assert self.dmd2.gan is not None
        means = self.dmd2.gan.module.get_buffer("mean_ratios")
        u = flow_time(self.dmd2.teacher.schedule, t).to(logits.device)
        bins = (u * self.bins).long().clamp(max=self.bins - 1)
        r = ratio(logits, self.lowest, self.highest)
        means.copy_(updated_means(means, r, bins, self.decay))
        h = H[self.divergence](r / means[bins])
        return h / h.mean()
