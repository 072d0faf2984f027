"""What a quantized linear layer holds, whatever kernel runs it: read out of it, changed, and put back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from fewstep.numerics.quantized import WHOLE, Quantized, dequantize

Change = Callable[[Tensor, int], Tensor]  # a tensor and its dimension to be changed -> the tensor that it becomes


@dataclass(frozen=True)
class Held:
    """The numbers of one layer: y = (x / smooth) · (weight + up · down)ᵀ + bias.

    Attributes:
        weight: (out, in).
        bias: (out,).
        smooth: what inputs are divided by before anything else, (in,).
        down, up: the branch in the model's own precision, (rank, in) and (out, rank).
    """

    weight: Quantized
    bias: Tensor | None = None
    smooth: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None

    def along(self, axis: int, change: Change) -> Held:
        """With `change` of every tensor that goes along the outputs (axis 0) or the inputs (1). Packed codes and scales
        of blocks are shorter than that axis by a whole factor; a scale for all of it stays."""
        q = self.weight
        scale = q.scale if q.layout.block[axis] == WHOLE else change(q.scale, axis)
        weight = replace(q, codes=change(q.codes, axis), scale=scale)
        if axis == 0:
            return replace(self, weight=weight, bias=_changed(self.bias, 0, change), up=_changed(self.up, 0, change))
        down = _changed(self.down, 1, change)
        return replace(self, weight=weight, smooth=_changed(self.smooth, 0, change), down=down)

    def product(self, x: Tensor) -> Tensor:
        """y of x (…, in), in float32 and with nothing rounded but the weight; in the dtype of `x`."""
        exact = x.float() if self.smooth is None else x.float() / self.smooth.float()
        y = F.linear(exact, dequantize(self.weight), None if self.bias is None else self.bias.float())
        if self.down is not None and self.up is not None:
            y = y + F.linear(F.linear(exact, self.down.float()), self.up.float())
        return y.to(x.dtype)


def _changed(tensor: Tensor | None, dimension: int, change: Change) -> Tensor | None:
    return None if tensor is None else change(tensor, dimension)
