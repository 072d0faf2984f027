"""Muon: momentum whose matrices are made orthogonal before they are applied (arXiv 2502.16982).

torch has the same optimizer, but it computes in bfloat16, which a CPU without bfloat16 instructions does sixty times
slower than float32, and it iterates on the long side of a matrix. Here everything is float32 and on the short side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that pulls singular values towards 1


class Muon(Optimizer):
    """For matrices, shape (rows, columns), and kernels of convolutions, which are matrices of shape (channels out, all
    else); give biases, norms and embeddings to AdamW.

    Args:
        lr: the rate. Times √max(1, rows / columns), or, with `like_adamw`, times 0.2·√max(rows, columns), which makes a
            step as large as AdamW's (section 2.2), so that both can share one rate.
        momentum: of the gradient, with Nesterov's look ahead.
        weight_decay: decoupled, per unit of rate.

    Raises:
        ValueError: a parameter that is neither.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        like_adamw: bool = False,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "like_adamw": like_adamw}
        super().__init__(params, options)
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim < 2:
                    raise ValueError(f"Muon is for matrices, and a parameter has shape {tuple(p.shape)}.")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step. A closure is not supported: nothing here needs the loss twice."""
        if closure is not None:
            raise ValueError("Muon takes no closure.")
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            ways = orthogonal([self._lead(p, group["momentum"]).flatten(1) for p in moved])
            for p, way in zip(moved, ways, strict=True):
                rows, columns = way.shape
                scale = 0.2 * max(rows, columns) ** 0.5 if group["like_adamw"] else max(1.0, rows / columns) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(way.reshape(p.shape), alpha=-group["lr"] * scale)

    def _lead(self, p: Tensor, keep: float) -> Tensor:
        """The gradient's running mean with Nesterov's look ahead."""
        assert p.grad is not None
        momentum = self.state[p].setdefault("momentum", torch.zeros_like(p.grad))
        momentum.lerp_(p.grad, 1 - keep)
        return p.grad.lerp(momentum, keep)


def orthogonal(matrices: Sequence[Tensor], rounds: int = 5) -> list[Tensor]:
    """About U·Vᵀ of each matrix U·S·Vᵀ: singular values land between 0.7 and 1.2, which is as good as 1 here.

    Newton–Schulz: X ← (a + b·G + c·G²)·X with G = X·Xᵀ. Every factor is a polynomial in the first G, so they commute,
    and only the small square matrices G and Q are iterated, those of one size together; X is multiplied once, at the
    end.
    """
    wide = [(m.T if m.shape[0] > m.shape[1] else m).float() for m in matrices]
    wide = [x / x.norm().clamp(min=1e-7) for x in wide]
    made: list[Tensor] = list(wide)
    for side in {len(x) for x in wide}:
        same = [i for i, x in enumerate(wide) if len(x) == side]
        for i, q in zip(same, _polynomial(torch.stack([wide[i] @ wide[i].T for i in same]), rounds), strict=True):
            made[i] = q @ wide[i]
    return [x.T if m.shape[0] > m.shape[1] else x for m, x in zip(matrices, made, strict=True)]


def _polynomial(gram: Tensor, rounds: int) -> Tensor:
    """Q with Q·X the matrix after `rounds` rounds, for a batch of G = X·Xᵀ, (n, side, side)."""
    a, b, c = COEFFICIENTS
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    q: Tensor | None = None
    for left in reversed(range(rounds)):
        factor = torch.baddbmm(a * eye + b * gram, gram, gram, alpha=c)
        q = factor if q is None else factor @ q
        if left:
            gram = factor @ (factor @ gram)
    return eye.expand_as(gram) if q is None else q
