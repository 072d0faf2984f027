"""All schemes of quantization as data: how the weight of a linear layer is held, and what its input is rounded to."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.numerics.quantized import WHOLE, Layout

PER_TENSOR, PER_ROW = (WHOLE, WHOLE), (1, WHOLE)


@dataclass(frozen=True)
class Scheme:
    """One way to quantize a linear layer.

    Attributes:
        name: as in a recipe.
        weight: of the weight, (out, in).
        input: of the layer's input, (tokens, in), made anew in every call; None leaves it as it is.
        rank: of a branch in the model's own precision that takes the largest part of the weight before the rest is
            quantized (SVDQuant, arXiv 2411.05007); 0 for none.
        doc: one line for people.
    """

    name: str
    weight: Layout
    input: Layout | None
    doc: str
    rank: int = 0

    @property
    def bits(self) -> float:
        """Bits that a weight takes, its share of the scales counted; without those of whole rows or tensors."""
        rows, columns = self.weight.block
        scales = (
            0.0
            if WHOLE in (rows, columns)
            else {"float32": 32, "e4m3": 8, "e8m0": 8}[self.weight.scale] / (rows * columns)
        )
        return self.weight.format.bits + scales


_INT8, _FP8, _FP8_TENSOR = Layout("int8", PER_ROW), Layout("e4m3", PER_ROW), Layout("e4m3", PER_TENSOR)
_NVFP4, _MXFP8 = Layout("e2m1", (1, 16), "e4m3"), Layout("e4m3", (1, 32), "e8m0")
_INT4 = Layout("int4", (1, 64))

SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("int8-dynamic", _INT8, _INT8, "INT8 products; a scale for each output and each token"),
        Scheme("fp8-dynamic", _FP8, _FP8, "FP8 e4m3 products; a scale for each output and each token"),
        Scheme("fp8-dynamic-tensor", _FP8_TENSOR, _FP8_TENSOR, "FP8 e4m3 products; one scale a tensor"),
        Scheme(
            "fp8-dynamic-block",
            Layout("e4m3", (128, 128)),
            Layout("e4m3", (1, 128)),
            "FP8 e4m3 products; a scale for each 128×128 weights and each 128 inputs of a token",
        ),
        Scheme("mxfp8", _MXFP8, _MXFP8, "FP8 e4m3 products; power-of-two scales for 32 numbers each"),
        Scheme("nvfp4", _NVFP4, _NVFP4, "FP4 products; e4m3 scales for 16 numbers each"),
        Scheme("int8-weight-only", _INT8, None, "INT8 weights; products in the model's own precision"),
        Scheme("fp8-weight-only", _FP8, None, "FP8 weights; products in the model's own precision"),
        Scheme("nvfp4-weight-only", _NVFP4, None, "FP4 weights; products in the model's own precision"),
        Scheme(
            "int4-weight-only", _INT4, None, "INT4 weights, a scale for each 64; products in the model's own precision"
        ),
        Scheme("svd-int4", _INT4, _INT4, "INT4 products beside a branch of rank 32 that takes the outliers", rank=32),
        Scheme("svd-nvfp4", _NVFP4, _NVFP4, "FP4 products beside a branch of rank 32 that takes the outliers", rank=32),
    )
}
