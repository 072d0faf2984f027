"""A linear layer that shows what any scheme does to a result, in plain torch, on any device; it is no faster for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.numerics.quantized import Quantized, dequantize, fake, quantize
from fewstep.numerics.schemes import Scheme
from fewstep.techniques.linears.held import Held


def outline(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A weight without its numbers, for model code that asks a layer's for its shape or dtype (T5's does)."""
    return torch.empty(shape, dtype=dtype, device="meta")


def low_rank(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`down` (rank, in) and `up` (out, rank), float32: up @ down is the nearest matrix of that rank to `weight`."""
    u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root


def smoothing(largest: Tensor, weight: Tensor, strength: float) -> Tensor:
    """λ (in,): what a layer's input is divided by and its weight times, so that outliers move into the weight.

    λ = max|x|^strength / max|W|^(1 − strength) for each input feature (2211.10438, eq. 4; 2411.05007, section 4.2);
    1 where a feature is always 0.

    Args:
        largest: max|x| of each input feature over a calibration, (in,).
        weight: (out, in).
        strength: in [0, 1].
    """
    columns = weight.float().abs().amax(0)
    scale = largest.float() ** strength / columns ** (1 - strength)
    return torch.where((scale > 0) & scale.isfinite(), scale, 1.0)


class EmulatedLinear(nn.Module):
    """`linear` under `scheme`: the weight is held in its few bits and read back for each call, the input rounded.

    Where the scheme rounds inputs, real kernels multiply the small numbers exactly and rescale in float32, so the
    product is taken in float32 here; where it does not, in the input's own dtype. With a rank, what the input of the
    layer does through `up @ down` is added in the model's precision, and the weight holds the rest (2411.05007, eq. 4).

    Args:
        smooth: λ of `smoothing`, (in,); None for none.
        rounded: how a kernel rounds the layer's input where it does other than the scheme says.
        held: the weight where it is quantized already; of `linear`, which may be on the meta device then, only the
            bias counts.
    """

    codes: Tensor
    scale: Tensor
    global_scale: Tensor | None
    bias: Tensor | None
    smooth: Tensor | None
    down: Tensor | None
    up: Tensor | None

    def __init__(
        self,
        linear: nn.Linear,
        scheme: Scheme,
        smooth: Tensor | None = None,
        rounded: Callable[[Tensor], Tensor] | None = None,
        held: Quantized | None = None,
    ) -> None:
        super().__init__()
        self.scheme, self._dtype, self._rounded = scheme, linear.weight.dtype, rounded or self._fake
        down = up = None
        if held is None:
            weight = linear.weight.detach().float()
            weight = weight if smooth is None else weight * smooth
            if scheme.rank:
                down, up = (part.to(linear.weight.dtype) for part in low_rank(weight, scheme.rank))
                weight = weight - up.float() @ down.float()
            held = quantize(weight, scheme.weight)
        bias = None if linear.bias is None else linear.bias.detach()
        self.hold(Held(held, bias, smooth, down, up))

    def hold(self, held: Held) -> None:
        """Take other numbers of the same scheme, of as many features as there are of them."""
        q = held.weight
        made = {"codes": q.codes, "scale": q.scale, "global_scale": q.global_scale, "bias": held.bias}
        for name, tensor in {**made, "smooth": held.smooth, "down": held.down, "up": held.up}.items():
            self.register_buffer(name, tensor)
        self.out_features, self.in_features = q.shape
        self.weight = outline(q.shape, self._dtype)

    @property
    def held(self) -> Held:
        return Held(self.quantized, self.bias, self.smooth, self.down, self.up)

    @property
    def quantized(self) -> Quantized:
        return Quantized(self.scheme.weight, self.codes, self.scale, self.global_scale)

    @property
    def stored_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers())

    # A compiler may reorder a rounding, and the rounding is what is looked at.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor) -> Tensor:
        smoothed = x if self.smooth is None else x / self.smooth.to(x.dtype)
        seen = smoothed if self.scheme.input is None else self._rounded(smoothed)
        product = F.linear(seen, dequantize(self.quantized).to(seen.dtype)).to(x.dtype)
        if self.down is not None and self.up is not None:
            product = product + F.linear(F.linear(smoothed, self.down.to(x.dtype)), self.up.to(x.dtype))
        return product if self.bias is None else product + self.bias.to(x.dtype)

    def _fake(self, x: Tensor) -> Tensor:
        assert self.scheme.input is not None
        return fake(x.float(), self.scheme.input)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, scheme={self.scheme.name}"
