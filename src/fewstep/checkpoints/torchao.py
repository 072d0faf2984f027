"""torchao: a diffusers folder whose safetensors header says how each tensor is put together from its parts.

Read and written without torchao: what its flattening leaves is plain tensors and JSON. See docs/checkpoints/torchao.md.
"""

from __future__ import annotations

import json
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
    INT8_ROW,
    INT8_TENSOR,
    MXFP8,
    NVFP4,
    only,
    per_tensor_or_row,
    refuse_rest,
    scalar,
)
from fewstep.checkpoints.parts import Parsed, Shape, StoredLayer
from fewstep.checkpoints.stored import Stored
from fewstep.errors import CheckpointError
from fewstep.numerics.quantized import Layout, Quantized
from fewstep.numerics.swizzle import in_lines, padded, unswizzle

NAMES = "tensor_names"
PLAIN = "Tensor"
CLASSES: dict[Layout, str] = {
    FP8_ROW: "Float8Tensor",
    FP8_TENSOR: "Float8Tensor",
    INT8_ROW: "Int8Tensor",
    INT8_TENSOR: "Int8Tensor",
    NVFP4: "NVFP4Tensor",
    MXFP8: "MXTensor",
}

CODES = {name: layout.format.dtype for layout, name in CLASSES.items()}


def _typed(name: str, data: Any, version: int | None = None) -> dict[str, Any]:
    return {"_type": name, **({} if version is None else {"_version": version}), "_data": data}


_PER_ROW, _PER_TENSOR = _typed("PerRow", {"dim": -1}, 1), _typed("PerTensor", {}, 1)
_E4M3, _AUTO = _typed("torch.dtype", "float8_e4m3fn"), _typed("KernelPreference", "AUTO")


def _int8(granularity: Any) -> Any:
    return _typed(
        "Int8WeightOnlyConfig", {"group_size": None, "granularity": granularity, "set_inductor_config": True}, 2
    )


def _fp8(granularity: Any) -> Any:
    data = {"weight_dtype": _E4M3, "set_inductor_config": True, "granularity": granularity}
    return _typed("Float8WeightOnlyConfig", data, 2)


CONFIGS: dict[Layout, Any] = {
    FP8_ROW: _fp8(_PER_ROW),
    FP8_TENSOR: _fp8(_PER_TENSOR),
    INT8_ROW: _int8(_PER_ROW),
    INT8_TENSOR: _int8(_PER_TENSOR),
    NVFP4: _typed("NVFP4WeightOnlyConfig", {"use_dynamic_per_tensor_scale": True}, 1),
    MXFP8: _typed(
        "MXDynamicActivationMXWeightConfig",
        {
            "block_size": 32,
            "activation_dtype": _E4M3,
            "weight_dtype": _E4M3,
            "kernel_preference": _AUTO,
            "scaling_mode": _typed("ScaleCalculationMode", "RCEIL"),
        },
        1,
    ),
}
"""What config.json says of a model whose layers are mostly so; each layer's own word stands in the header."""


def parse(stored: Stored, config: Mapping[str, Any]) -> Parsed:
    """The layers that the header names.

    Raises:
        CheckpointError: a part is missing or left over, or the header names a kind that fewstep can't read.
    """
    layers: dict[str, StoredLayer] = {}
    plain: dict[str, str] = {}
    used: set[str] = set()
    for name, said in _said(stored).items():
        if said["_type"] == PLAIN:
            if name not in stored.where:
                raise CheckpointError(f"{stored.path}: the header names the tensor {name}, which is not there.")
            plain[name] = name
            used.add(name)
            continue
        path, leaf = name.rsplit(".", 1)
        if said["_type"] not in CLASSES.values():
            raise CheckpointError(
                f"{stored.path}: the layer {path} is a {said['_type']}; fewstep reads "
                f"{', '.join(dict.fromkeys(CLASSES.values()))}."
            )
        parts = {part: f"{path}._{leaf}_{part}" for part in said.get("_tensor_data_names", ())}
        for part in {**dict.fromkeys(("qdata", "scale")), **parts}:
            if parts.get(part) not in stored.where:
                raise CheckpointError(f"{stored.path}: the layer {path} must have the part {part}; it has none.")
        layers[path] = StoredLayer(said["_type"], tuple(parts.values()), partial(make, said, parts))
        used |= set(parts.values())
    refuse_rest(stored, used, ("",))
    return Parsed(layers, plain)


def _said(stored: Stored) -> dict[str, dict[str, Any]]:
    try:
        said = {name: json.loads(stored.metadata[name]) for name in json.loads(stored.metadata[NAMES])}
        if all(one["_type"] == PLAIN or "." in name for name, one in said.items()):
            return said
    except (ValueError, KeyError, TypeError):
        pass
    raise CheckpointError(f"{stored.path}: the header must say of every tensor in {NAMES!r} what it is, as JSON.")


def make(said: Mapping[str, Any], parts: Mapping[str, str], get: Get, shape: Shape | None) -> Quantized:
    """The canonical matrix of torchao's parts."""
    data = said["_data"]
    tensors = {part: get(name) for part, name in parts.items()}
    codes, scale = tensors.pop("qdata"), tensors.pop("scale")
    if codes.dtype != CODES[said["_type"]]:
        raise ValueError(f"its codes are {codes.dtype}, a {said['_type']} has {CODES[said['_type']]}")
    zero = tensors.pop("zero_point", None)
    if zero is not None and not zero.is_meta and zero.any():
        raise ValueError("its zero points are not 0; fewstep reads symmetric ones")
    second, given = tensors.pop("per_tensor_scale", None), tensors.pop("act_per_tensor_scale", None)
    if tensors:
        raise ValueError(f"it has the parts {', '.join(tensors)}, which fewstep can't read")
    given = None if given is None else scalar(given)
    if said["_type"] in ("NVFP4Tensor", "MXTensor"):
        layout = NVFP4 if said["_type"] == "NVFP4Tensor" else MXFP8
        if data.get("block_size") != layout.block[1] or codes.dtype != layout.format.dtype:
            raise ValueError(f"it has blocks of {data.get('block_size')} and {codes.dtype}; known is {layout.block[1]}")
        rows, columns = codes.shape[0], codes.shape[1] * 8 // layout.format.bits
        if data.get("is_swizzled_scales"):
            high, wide = padded(rows, columns // layout.block[1])
            if scale.numel() != high * wide:
                raise ValueError(f"it has {scale.numel()} swizzled scales, right would be {high * wide}")
            scale = unswizzle(scale, rows, columns // layout.block[1])
        if layout == NVFP4:
            second = torch.ones((), device=codes.device) if second is None else scalar(second)
        return Quantized(layout, codes, scale, second, given)
    layout, grid = per_tensor_or_row(codes, scale)
    rows, columns = codes.shape
    high, wide = layout.block[0] or rows, columns
    if list(data.get("block_size") or [high, wide]) != [high, wide]:
        raise ValueError(f"the header says blocks of {data['block_size']}, its scales are for {[high, wide]}")
    return Quantized(layout, codes, grid)


def pack(path: str, q: Quantized) -> dict[str, Tensor]:
    """The parts of a layer as torchao names them; scales of blocks swizzled, as its GPU kernels want them."""
    only(q.layout, CLASSES, path, "torchao")
    if q.input_scale is not None and q.layout != NVFP4:
        raise CheckpointError(f"In the format torchao the layer {path} can't keep its input_scale; only nvfp4 can.")
    parts = {"qdata": q.codes, "scale": in_lines(q.scale) if q.layout in (NVFP4, MXFP8) else q.scale}
    if q.global_scale is not None:
        parts["per_tensor_scale"] = q.global_scale
    if q.input_scale is not None:
        parts["act_per_tensor_scale"] = q.input_scale
    return {f"{path}._weight_{name}": tensor for name, tensor in parts.items()}


def header(checkpoint: Checkpoint) -> dict[str, str]:
    """What the file says of each tensor."""
    dtype = _dtype(checkpoint)
    said: dict[str, Any] = {}
    for path in checkpoint.layers:
        q = layer_outline(checkpoint.layers, path)
        parts = [name.rsplit("_weight_", 1)[1] for name in pack(path, q)]
        said[f"{path}.weight"] = {**_typed(CLASSES[q.layout], _data(q, dtype)), "_tensor_data_names": parts}
    said |= {name: {"_type": PLAIN} for name in checkpoint.plain}
    return {NAMES: json.dumps(list(said)), **{name: json.dumps(one) for name, one in said.items()}}


def _data(q: Quantized, dtype: Any) -> dict[str, Any]:
    rows, columns = q.shape
    block = [q.layout.block[0] or rows, q.layout.block[1] or columns]
    if q.layout == NVFP4:
        kwargs = {"block_size": 16, "is_swizzled_scales": True, "use_triton_kernel": False}
        act = (
            None
            if q.input_scale is None
            else _typed("QuantizeTensorToNVFP4Kwargs", {**kwargs, "use_dynamic_per_tensor_scale": False})
        )
        return {**kwargs, "act_quant_kwargs": act, "orig_dtype": dtype}
    if q.layout == MXFP8:
        kernel = _typed("KernelPreference", "EMULATED")  # torchao's own choice where no kernel is asked for
        data = {"elem_dtype": _E4M3, "block_size": 32, "orig_dtype": dtype, "kernel_preference": kernel}
        return {**data, "act_quant_kwargs": None, "is_swizzled_scales": True}
    if q.layout.element == "int8":
        return {"act_quant_kwargs": None, "reduce_range": False, "block_size": block, "dtype": dtype}
    data = {"block_size": block, "mm_config": None, "act_quant_kwargs": None}
    return {**data, "kernel_preference": _AUTO, "dtype": dtype}


def _dtype(checkpoint: Checkpoint) -> Any:
    kinds = Counter(
        tensor.dtype
        for tensor in (plain_outline(checkpoint.plain, name) for name in checkpoint.plain)
        if tensor.is_floating_point()
    )
    kind = kinds.most_common(1)[0][0] if kinds else torch.bfloat16
    return _typed("torch.dtype", str(kind).removeprefix("torch."))


def quantization_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `config.json` says; the linear layers left alone are named."""
    kinds = Counter(layer_outline(checkpoint.layers, path).layout for path in checkpoint.layers)
    left = sorted(
        name.removesuffix(".weight")
        for name in checkpoint.plain
        if name.endswith(".weight") and plain_outline(checkpoint.plain, name).dim() == 2
    )
    quant_type = {"default": CONFIGS[kinds.most_common(1)[0][0]]}
    return {"quant_method": "torchao", "quant_type": quant_type, "modules_to_not_convert": left}
