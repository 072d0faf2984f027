"""NVIDIA ModelOpt: a diffusers folder; low nibble first, scales in rows. See docs/checkpoints/modelopt.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.checkpoints.checkpoint import Checkpoint, Get, layer_outline, plain_outline
from fewstep.checkpoints.layouts import (
    FP8_ROW,
    FP8_TENSOR,
    MXFP8,
    NVFP4,
    is_whole,
    only,
    per_tensor_or_row,
    powers_of_two,
    refuse_rest,
    scalar,
)
from fewstep.checkpoints.parts import Parsed, Shape, StoredLayer
from fewstep.checkpoints.stored import Stored
from fewstep.errors import CheckpointError
from fewstep.numerics.quantized import Layout, Quantized

SUFFIXES = (".weight_scale", ".weight_scale_2", ".input_scale")
LAYOUTS: dict[str, Layout] = {
    "FP8": FP8_TENSOR,
    "FP8_PER_CHANNEL_PER_TOKEN": FP8_ROW,
    "MXFP8": MXFP8,
    "NVFP4": NVFP4,
    "W4A16_NVFP4": NVFP4,
}
"""What ModelOpt calls an algorithm -> how it holds a weight."""
MIXED = "MIXED_PRECISION"
_FLOAT4, _FLOAT8 = {"num_bits": 4, "type": "float"}, {"num_bits": 8, "type": "float"}
GROUPS: dict[str, dict[str, Any]] = {
    "FP8": {"weights": {**_FLOAT8, "dynamic": False}, "input_activations": {**_FLOAT8, "dynamic": False}},
    "FP8_PER_CHANNEL_PER_TOKEN": {
        "weights": {**_FLOAT8, "dynamic": False, "strategy": "channel"},
        "input_activations": {**_FLOAT8, "dynamic": True, "strategy": "token"},
    },
    "MXFP8": {
        "weights": {**_FLOAT8, "dynamic": False, "group_size": 32},
        "input_activations": {**_FLOAT8, "dynamic": True, "group_size": 32},
    },
    "NVFP4": {
        "weights": {**_FLOAT4, "dynamic": False, "group_size": 16},
        "input_activations": {**_FLOAT4, "dynamic": False, "group_size": 16},
    },
    "W4A16_NVFP4": {"weights": {**_FLOAT4, "dynamic": False, "group_size": 16}},
}


def parse(stored: Stored, config: Mapping[str, Any]) -> Parsed:
    """The layers of a folder.

    Raises:
        CheckpointError: scales too few or too many, or a config that says other than the tensors.
    """
    said = config.get("quantization_config", {})
    layers: dict[str, StoredLayer] = {}
    used: set[str] = set()
    for scale in (name for name in stored.where if name.endswith(".weight_scale")):
        path = scale.removesuffix(".weight_scale")
        names = tuple(name for name in (f"{path}.weight", *(path + s for s in SUFFIXES)) if name in stored.where)
        algorithm = _algorithm(stored, path)
        _agrees(stored, said, path, algorithm)
        layers[path] = StoredLayer(algorithm, names, partial(make, path, f"{path}.input_scale" in stored.where))
        used |= set(names)
    refuse_rest(stored, used, SUFFIXES)
    _all_there(stored, said, layers)
    plain = {name: name for name in stored.where if name not in used}
    facts = {"producer": said.get("producer", {}), "quant_algo": said.get("quant_algo")}
    return Parsed(layers, plain, facts=facts)


def make(path: str, has_input: bool, get: Get, shape: Shape | None) -> Quantized:
    """The canonical matrix of ModelOpt's tensors."""
    codes, scale = get(f"{path}.weight"), get(f"{path}.weight_scale")
    given = scalar(get(f"{path}.input_scale")) if has_input else None
    if codes.dtype == torch.uint8:
        return Quantized(NVFP4, codes, scale, scalar(get(f"{path}.weight_scale_2")), given)
    if scale.dtype in (torch.uint8, torch.float8_e8m0fnu):
        return Quantized(MXFP8, codes, powers_of_two(scale), None, given)
    return Quantized(*_around(codes, scale), None, given)


def _around(codes: Tensor, scale: Tensor) -> tuple[Layout, Tensor, Tensor]:
    layout, grid = per_tensor_or_row(codes, scale)
    return layout, codes, grid


def _algorithm(stored: Stored, path: str) -> str:
    if f"{path}.weight" not in stored.where:
        raise CheckpointError(f"{stored.path}: the scale {path}.weight_scale has no weight.")
    kind, scale = stored.shape(f"{path}.weight").dtype, stored.shape(f"{path}.weight_scale")
    second = f"{path}.weight_scale_2" in stored.where
    if second != (kind == torch.uint8):
        raise CheckpointError(
            f"{stored.path}: the layer {path} has {'a' if second else 'no'} weight_scale_2; NVFP4 weights (uint8) "
            f"must have one, others none."
        )
    if kind == torch.uint8:
        return "NVFP4" if f"{path}.input_scale" in stored.where else "W4A16_NVFP4"
    if kind != torch.float8_e4m3fn:
        raise CheckpointError(f"{stored.path}: the weight of {path} is {kind}; ModelOpt's are uint8 or float8_e4m3fn.")
    if scale.dtype in (torch.uint8, torch.float8_e8m0fnu):
        return "MXFP8"
    return "FP8" if scale.numel() == 1 else "FP8_PER_CHANNEL_PER_TOKEN"


def _agrees(stored: Stored, said: Mapping[str, Any], path: str, found: str) -> None:
    algorithm = said.get("quant_algo")
    if algorithm == MIXED:
        algorithm = said.get("quantized_layers", {}).get(path, {}).get("quant_algo")
    if LAYOUTS.get(str(algorithm)) != LAYOUTS[found]:
        raise CheckpointError(
            f"{stored.path}: config.json says {algorithm} of the layer {path}, but its tensors are {found}."
        )


def _all_there(stored: Stored, said: Mapping[str, Any], layers: Mapping[str, StoredLayer]) -> None:
    for path in said.get("quantized_layers", {}):
        if path not in layers:
            raise CheckpointError(f"{stored.path}: config.json names the layer {path}, which has no weight_scale.")


def algorithm_of(path: str, q: Quantized) -> str:
    """What ModelOpt calls this layer's layout.

    Raises:
        CheckpointError: it has no word for it.
    """
    only(q.layout, dict.fromkeys(LAYOUTS.values()), path, "modelopt")
    if q.layout == NVFP4:
        return "W4A16_NVFP4" if q.input_scale is None else "NVFP4"
    return next(name for name, layout in LAYOUTS.items() if layout == q.layout)


def pack(path: str, q: Quantized) -> dict[str, Tensor]:
    """The tensors of a layer as ModelOpt names them."""
    algorithm_of(path, q)
    scale = q.scale.view(torch.uint8) if q.layout == MXFP8 else q.scale
    if q.layout == FP8_ROW:
        scale = scale.reshape(-1)
    tensors = {"weight": q.codes, "weight_scale": scale.reshape(()) if is_whole(q) else scale}
    if q.global_scale is not None:
        tensors["weight_scale_2"] = q.global_scale
    if q.input_scale is not None:
        tensors["input_scale"] = q.input_scale
    return {f"{path}.{name}": tensor for name, tensor in tensors.items()}


def quantization_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `config.json` says of the layers; those left alone are named one by one."""
    algorithms = {path: algorithm_of(path, layer_outline(checkpoint.layers, path)) for path in checkpoint.layers}
    said: dict[str, Any] = {
        "quant_method": "modelopt",
        "producer": checkpoint.facts.get("producer") or {"name": "fewstep"},
        "ignore": sorted(
            name.removesuffix(".weight")
            for name in checkpoint.plain
            if name.endswith(".weight") and plain_outline(checkpoint.plain, name).dim() == 2
        ),
    }
    kinds = Counter(algorithms.values())
    if len(kinds) == 1:
        algorithm = next(iter(kinds))
        said |= {"quant_algo": algorithm, "config_groups": {"group_0": {**GROUPS[algorithm], "targets": ["Linear"]}}}
    else:
        sizes = {name: {"group_size": group["weights"].get("group_size")} for name, group in GROUPS.items()}
        said |= {
            "quant_algo": MIXED,
            "quantized_layers": {
                path: {"quant_algo": name, **{k: v for k, v in sizes[name].items() if v}}
                for path, name in algorithms.items()
            },
        }
    return said
