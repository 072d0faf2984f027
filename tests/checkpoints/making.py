"""Tiny models, quantized: `quantized(family, layout)` gives (checkpoint, the original tensors)."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import diffusers
import torch
from torch import Tensor

from fewstep.checkpoints.checkpoint import Checkpoint, take_rows
from fewstep.checkpoints.families import ORIGINAL_NAMES, from_ours
from fewstep.checkpoints.layouts import FP8_ROW, FP8_TENSOR, INT8_ROW, INT8_TENSOR, MXFP8, NVFP4
from fewstep.numerics.quantized import Layout, quantize, with_input_scale
from tests.models.tiny import PIPELINES

LAYOUTS = {
    "nvfp4": NVFP4,
    "mxfp8": MXFP8,
    "fp8-tensor": FP8_TENSOR,
    "fp8-row": FP8_ROW,
    "int8-row": INT8_ROW,
    "int8-tensor": INT8_TENSOR,
}
FAMILIES = ("flux", "flux2", "wan")
NEED_INPUT = ("nvfp4",)  # with an input scale here, so that every format can hold it


@cache
def tensors_of(family: str) -> tuple[str, str, dict[str, Tensor]]:
    """(class name, config as JSON, tensors); each layer of a size of its own, so that scales differ."""
    if family == "wan":
        torch.manual_seed(0)
        model: Any = diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            text_dim=32,
            freq_dim=32,
            ffn_dim=64,
            num_layers=1,
            rope_max_seq_len=32,
        )
    elif family == "wide":  # Flux with matrices as large as a tile of swizzled scales
        torch.manual_seed(0)
        model = diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
        )
    else:
        model = PIPELINES[family]()[0].transformer
    random = torch.Generator().manual_seed(7)
    tensors = {}
    for name, tensor in model.state_dict().items():
        size = 0.5 + 3 * float(torch.rand((), generator=random))
        # all tensors random: norms and tables begin as ones or zeros, and a wrong order of these would not be seen
        rows = 0.2 + torch.rand((tensor.shape[0], *[1] * (tensor.dim() - 1)), generator=random)
        tensors[name] = size * rows * torch.randn(tensor.shape, generator=random)
    return type(model).__name__, json.dumps(json.loads(model.to_json_string())), tensors


def quantized(family: str, layout: Layout, *, with_input: bool | None = None) -> tuple[Checkpoint, dict[str, Tensor]]:
    """A checkpoint of the matrices in blocks and of the last modulation, whose halves the original code swaps."""
    model, config, tensors = tensors_of(family)
    rules = ORIGINAL_NAMES[model]
    layers: dict[str, Any] = {}
    with_input = layout == NVFP4 if with_input is None else with_input
    for name, weight in tensors.items():
        path = name.removesuffix(".weight")
        inside = "blocks." in name or name.startswith("norm_out")
        if path in layers or path == name or weight.dim() != 2 or any(s % 32 for s in weight.shape) or not inside:
            continue
        place = from_ours(path, rules)
        assert place is not None
        parts = [tensors[f"{part}.weight"] for part in place.ours]
        q = quantize(torch.cat(parts), layout)
        q = with_input_scale(q, torch.tensor(0.01 * (1 + len(layers))) if with_input else None)
        start = 0
        for part, one in zip(place.ours, parts, strict=True):
            layers[part] = take_rows(q, start, start + len(one))
            start += len(one)
    plain = {name: t for name, t in tensors.items() if name.removesuffix(".weight") not in layers or "bias" in name}
    return Checkpoint(model, json.loads(config), plain, layers, {"made_by": "a test"}), tensors


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """To the last bit."""
    if a is None or b is None:
        return a is b
    whole = a.dtype == b.dtype and a.shape == b.shape
    return whole and torch.equal(
        a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8)
    )


def differences(a: Checkpoint, b: Checkpoint) -> list[str]:
    """Names of what is not the same in both, to the last bit."""
    found = list(a.layers.keys() ^ b.layers.keys() | a.plain.keys() ^ b.plain.keys())
    found += [name for name in a.plain.keys() & b.plain.keys() if not same(a.plain[name], b.plain[name])]
    for path in a.layers.keys() & b.layers.keys():
        p, q = a.layers[path], b.layers[path]
        pairs = ((p.codes, q.codes), (p.scale, q.scale), (p.global_scale, q.global_scale))
        if p.layout != q.layout or not all(same(*pair) for pair in (*pairs, (p.input_scale, q.input_scale))):
            found.append(path)
    return found
