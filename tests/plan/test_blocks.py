"""Weights and operations beside diffusers' own modules, which are built small and counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fewstep.models.load import ZOO
from fewstep.plan.blocks import BLOCKS, width_of
from fewstep.plan.read import USUAL, network_of
from fewstep.plan.work import work_of

HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
# Class -> its config, and what the last block lacks in diffusers, in squares of the width: SD3 and Mochi drop the text
# after it (its attention's output, its MLP, most of its modulation).
SMALL: dict[str, tuple[dict[str, Any], Callable[[int], int]]] = {
    "FluxTransformer2DModel": ({**HEADS, "num_layers": 2, "num_single_layers": 3}, lambda w: 0),
    "Flux2Transformer2DModel": (
        {**HEADS, "num_layers": 2, "num_single_layers": 3, "mlp_ratio": 3.0, "in_channels": 16},
        lambda w: 0,
    ),
    "ChromaTransformer2DModel": ({**HEADS, "num_layers": 2, "num_single_layers": 3}, lambda w: 0),
    "QwenImageTransformer2DModel": ({**HEADS, "num_layers": 2}, lambda w: 0),
    "SD3Transformer2DModel": (
        {**HEADS, "num_layers": 4, "caption_projection_dim": 32, "dual_attention_layers": (0, 1)},
        lambda w: (1 + 8 + 4) * w * w,
    ),
    "WanTransformer3DModel": ({**HEADS, "num_layers": 2, "ffn_dim": 80}, lambda w: 0),
    "LTXVideoTransformer3DModel": ({**HEADS, "num_layers": 2, "cross_attention_dim": 32}, lambda w: 0),
    "HunyuanVideoTransformer3DModel": ({**HEADS, "num_layers": 2, "num_single_layers": 3}, lambda w: 0),
    "CogVideoXTransformer3DModel": ({**HEADS, "num_layers": 2, "time_embed_dim": 24}, lambda w: 0),
    "MochiTransformer3DModel": (
        {"num_attention_heads": 6, "attention_head_dim": 16, "num_layers": 2, "pooled_projection_dim": 48},
        lambda w: w * (w // 2) + 8 * (w // 2) ** 2 + 3 * w * (w // 2),
    ),
    "ZImageTransformer2DModel": (
        {"dim": 96, "n_layers": 3, "n_refiner_layers": 2, "n_heads": 3, "n_kv_heads": 3, "axes_dims": [8, 12, 12]},
        lambda w: 0,
    ),
}
LISTS = ("blocks", "transformer_blocks", "single_transformer_blocks", "layers", "noise_refiner", "context_refiner")


def test_every_class_is_tried() -> None:
    assert set(SMALL) | {"PixArtTransformer2DModel"} == set(BLOCKS) == set(USUAL)


@pytest.mark.parametrize("kind", SMALL)
def test_weights_of_the_blocks(kind: str) -> None:
    config, dropped = SMALL[kind]
    with torch.device("meta"):
        model = getattr(diffusers, kind)(**config)
    full = {**model.config, "_class_name": kind}
    counted = sum(one.count * one.weights for one in BLOCKS[kind](full))
    lists = [getattr(model, name) for name in LISTS if isinstance(getattr(model, name, None), nn.ModuleList)]
    there = sum(part.weight.numel() for blocks in lists for part in blocks.modules() if isinstance(part, nn.Linear))
    assert counted - dropped(width_of(full)) == there


def test_pixart_is_as_ltx() -> None:
    with torch.device("meta"):
        model = diffusers.PixArtTransformer2DModel(**HEADS, num_layers=2, cross_attention_dim=32, norm_num_groups=2)
    there = sum(part.weight.numel() for part in model.transformer_blocks.modules() if isinstance(part, nn.Linear))
    assert sum(one.count * one.weights for one in BLOCKS["PixArtTransformer2DModel"](model.config)) == there


@pytest.mark.parametrize("name", ["shapes", "moving-shapes"])
def test_operations_of_a_call(name: str) -> None:
    """What torch counts in one call of the denoiser; embeddings and modulation make the rest of it."""
    network = network_of(f"zoo:{name}")
    work = work_of(network)
    folder = ZOO / name / "transformer"
    kind = json.loads((folder / "config.json").read_text())["_class_name"]
    model = getattr(diffusers, kind).from_pretrained(folder)
    text = torch.randn(1, work.text_tokens, 128)
    if name == "shapes":
        call: dict[str, Any] = {
            "hidden_states": torch.randn(1, work.image_tokens, network.values),
            "encoder_hidden_states": text,
            "pooled_projections": torch.randn(1, 64),
            "timestep": torch.ones(1),
            "img_ids": torch.zeros(work.image_tokens, 3),
            "txt_ids": torch.zeros(work.text_tokens, 3),
        }
    else:
        call = {
            "hidden_states": torch.randn(1, 24, 5, 8, 8),
            "encoder_hidden_states": text,
            "timestep": torch.ones(1),
        }
    # torch counts attention only where it is made of matrix products
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**call)
    counted = work.linear_flops + work.attention_flops
    assert counted < counter.get_total_flops() < 1.05 * counted
