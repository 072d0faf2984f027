"""ComfyUI: one file; high nibble first, swizzled scales. See docs/checkpoints/comfy.md.

Two generations: `comfy` says in the header what each layer is; `comfy-scaled-fp8` has a marker tensor and FP8 alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.checkpoints.checkpoint import Get
from fewstep.checkpoints.layouts import (
    FP8_TENSOR,
    INT8_ROW,
    INT8_TENSOR,
    MXFP8,
    NVFP4,
    is_whole,
    only,
    other_nibble_first,
    per_tensor_or_row,
    powers_of_two,
    refuse_rest,
    scalar,
)
from fewstep.checkpoints.parts import Parsed, Shape, StoredLayer
from fewstep.checkpoints.stored import Stored
from fewstep.errors import CheckpointError
from fewstep.numerics.quantized import Layout, Quantized
from fewstep.numerics.swizzle import swizzle, unswizzle_whole

PREFIX = "model.diffusion_model."
METADATA = "_quantization_metadata"
MARKER = "scaled_fp8"
WORDS: dict[Layout, str] = {
    FP8_TENSOR: "float8_e4m3fn",
    NVFP4: "nvfp4",
    MXFP8: "mxfp8",
    INT8_TENSOR: "int8_tensorwise",
    INT8_ROW: "int8_tensorwise",
}
CODES = {
    "float8_e4m3fn": torch.float8_e4m3fn,
    "nvfp4": torch.uint8,
    "mxfp8": torch.float8_e4m3fn,
    "int8_tensorwise": torch.int8,
}
TENSORS = {
    "float8_e4m3fn": ("weight", "weight_scale"),
    "nvfp4": ("weight", "weight_scale", "weight_scale_2"),
    "mxfp8": ("weight", "weight_scale"),
    "int8_tensorwise": ("weight", "weight_scale"),
}
SUFFIXES = (".weight_scale", ".weight_scale_2", ".input_scale", ".comfy_quant", ".pre_quant_scale")
OLD_SUFFIXES = (".scale_weight", ".scale_input")
ROWS_OF = {NVFP4: 16, MXFP8: 32}  # its kernels take rows by so many; the rest is filled with zeros


def parse(stored: Stored, config: Mapping[str, Any]) -> Parsed:
    """The layers that the header or the `comfy_quant` tensors name.

    Raises:
        CheckpointError: a layer without its scales, a scale without its layer, or a format that fewstep can't read.
    """
    layers: dict[str, StoredLayer] = {}
    used: set[str] = set()
    for path, conf in _confs(stored).items():
        word = str(conf.get("format"))
        if word not in TENSORS or conf.get("convrot"):
            what = "is rotated (convrot)" if word in TENSORS else f"has the format {word!r}"
            raise CheckpointError(f"{stored.path}: the layer {path} {what}; fewstep reads {', '.join(TENSORS)}.")
        for name in TENSORS[word]:
            if f"{path}.{name}" not in stored.where:
                raise CheckpointError(f"{stored.path}: the layer {path} is {word} and must have a {name}; it has none.")
        if (kind := stored.shape(f"{path}.weight").dtype) != CODES[word]:
            raise CheckpointError(f"{stored.path}: the weight of {path} is {kind}, but {word} has {CODES[word]}.")
        names = [f"{path}.{name}" for name in (*TENSORS[word], "input_scale", "comfy_quant")]
        names = [name for name in names if name in stored.where]
        has_input = f"{path}.input_scale" in names
        layers[path.removeprefix(PREFIX)] = StoredLayer(word, tuple(names), partial(make, path, word, has_input))
        used |= set(names)
    refuse_rest(stored, used, SUFFIXES)
    return Parsed(layers, _plain(stored, used), facts=dict(_facts(stored)), warnings=tuple(_odd(layers)))


def _confs(stored: Stored) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    try:
        if METADATA in stored.metadata:
            found = {path: dict(conf) for path, conf in json.loads(stored.metadata[METADATA])["layers"].items()}
        for name in (name for name in stored.where if name.endswith(".comfy_quant")):
            path = name.removesuffix(".comfy_quant")
            conf = json.loads(bytes(stored.numbers(name).tolist()))
            if found.get(path, conf).get("format") != conf.get("format"):
                raise CheckpointError(
                    f"{stored.path}: header and comfy_quant of the layer {path} say different formats."
                )
            found[path] = conf
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{stored.path}: what the header says of quantized layers is not readable JSON."
        ) from error
    return {_as_stored(stored, path): conf for path, conf in found.items()}


def _as_stored(stored: Stored, path: str) -> str:
    """The layer's path among the tensors: header and tensors need not agree about the prefix."""
    ways = (path, PREFIX + path, path.removeprefix(PREFIX))
    return next((way for way in ways if f"{way}.weight" in stored.where), path)


def _odd(layers: Mapping[str, StoredLayer]) -> list[str]:
    fp4 = {
        path: any(name.endswith(".input_scale") for name in one.names)
        for path, one in layers.items()
        if one.scheme == "nvfp4"
    }
    missing = [path for path, there in fp4.items() if not there]
    if not missing or len(missing) == len(fp4):
        return []
    return [
        f"{len(missing)} of {len(fp4)} nvfp4 layers have no input_scale, {missing[0]} among them; a reader that "
        f"takes 1 for it makes white pictures."
    ]


def _plain(stored: Stored, used: set[str]) -> dict[str, str]:
    return {name.removeprefix(PREFIX): name for name in stored.where if name not in used}


def _facts(stored: Stored) -> dict[str, Any]:
    return {key: value for key, value in stored.metadata.items() if key not in (METADATA, "fewstep")}


def make(path: str, word: str, has_input: bool, get: Get, shape: Shape | None) -> Quantized:
    """The canonical matrix of Comfy's tensors; rows that only fill up to the kernel's are cut off."""
    codes, scale = get(f"{path}.weight"), get(f"{path}.weight_scale")
    given = scalar(get(f"{path}.input_scale")) if has_input else None
    if word == "nvfp4":
        rows, columns = shape or (codes.shape[0], codes.shape[1] * 2)
        codes = _cut(codes, rows, columns // 2, ROWS_OF[NVFP4])
        second = scalar(get(f"{path}.weight_scale_2"))
        return Quantized(NVFP4, other_nibble_first(codes), _linear(scale, rows, columns // 16, 16), second, given)
    if word == "mxfp8":
        rows, columns = shape or (codes.shape[0], codes.shape[1])
        codes = _cut(codes, rows, columns, ROWS_OF[MXFP8])
        return Quantized(MXFP8, codes, powers_of_two(_linear(scale, rows, columns // 32, 32)), None, given)
    layout, grid = per_tensor_or_row(codes, scale)
    return Quantized(layout, codes, grid, None, given)


def _cut(codes: Tensor, rows: int, columns: int, tile: int) -> Tensor:
    if tuple(codes.shape) not in ((rows, columns), (rows + -rows % tile, columns)):
        raise ValueError(f"its weight is {tuple(codes.shape)}, right would be ({rows}, {columns})")
    return codes[:rows]


def _linear(scale: Tensor, rows: int, columns: int, tile: int) -> Tensor:
    high, wide = rows + -rows % 128, columns + -columns % 4
    if scale.numel() != high * wide or scale.element_size() != 1:
        raise ValueError(
            f"its scales are {tuple(scale.shape)} {scale.dtype}, right would be ({high}, {wide}) of 8 bits"
        )
    whole = unswizzle_whole(scale, rows, columns)
    if not scale.is_meta:
        rest = whole.view(torch.uint8).clone()
        rest[: rows + -rows % tile, :columns] = 0
        if rest.any():
            raise ValueError("the padding of its scales is not zero, so they are not swizzled in tiles of 128×4")
    return whole[:rows, :columns].contiguous()


def pack(path: str, q: Quantized) -> dict[str, Tensor]:
    """The tensors of a layer as Comfy names them."""
    only(q.layout, WORDS, path, "comfy")
    codes, scale = q.codes, q.scale
    if tile := ROWS_OF.get(q.layout):
        fill = (0, 0, 0, -q.shape[0] % tile)
        codes = F.pad(codes.contiguous().view(torch.uint8), fill).view(codes.dtype)
        scale = swizzle(scale)
    if q.layout == NVFP4:
        codes = other_nibble_first(codes)
    if q.layout == MXFP8:
        scale = scale.view(torch.uint8)
    tensors = {"weight": codes, "weight_scale": scale.reshape(()) if is_whole(q) else scale}
    if q.global_scale is not None:
        tensors["weight_scale_2"] = q.global_scale
    if q.input_scale is not None:
        tensors["input_scale"] = q.input_scale
    return {f"{path}.{name}": tensor for name, tensor in tensors.items()}


def header(outline: Mapping[str, Tensor]) -> dict[str, str]:
    """The header's word on the layers, told from what `pack` made of them: name in the file -> tensor."""
    confs = {}
    for name in (name for name in outline if name.endswith(".weight_scale")):
        path = name.removesuffix(".weight_scale")
        kind, scale = outline[f"{path}.weight"].dtype, outline[name]
        word = "mxfp8" if scale.dtype == torch.uint8 else next(word for word, codes in CODES.items() if codes == kind)
        per_row = word == "int8_tensorwise" and scale.dim() > 0
        confs[path] = {"format": word, **({"per_channel": True} if per_row else {})}
    return {METADATA: json.dumps({"format_version": "1.0", "layers": confs})}


def parse_scaled(stored: Stored, config: Mapping[str, Any]) -> Parsed:
    """The layers of the older generation: every `scale_weight` makes one.

    Raises:
        CheckpointError: a weight without its scale, or the other way round.
    """
    layers: dict[str, StoredLayer] = {}
    used = {name for name in (MARKER, PREFIX + MARKER) if name in stored.where}
    for scale in (name for name in stored.where if name.endswith(".scale_weight")):
        path = scale.removesuffix(".scale_weight")
        if f"{path}.weight" not in stored.where:
            raise CheckpointError(f"{stored.path}: the scale {scale} has no weight.")
        names = (f"{path}.weight", *(path + suffix for suffix in OLD_SUFFIXES if path + suffix in stored.where))
        has_input = f"{path}.scale_input" in names
        layers[path.removeprefix(PREFIX)] = StoredLayer("float8_e4m3fn", names, partial(make_scaled, path, has_input))
        used |= set(names)
    refuse_rest(stored, used, OLD_SUFFIXES)
    return Parsed(layers, _plain(stored, used), facts=_facts(stored))


def make_scaled(path: str, has_input: bool, get: Get, shape: Shape | None) -> Quantized:
    given = scalar(get(f"{path}.scale_input")) if has_input else None
    return Quantized(FP8_TENSOR, get(f"{path}.weight"), scalar(get(f"{path}.scale_weight")).reshape(1, 1), None, given)


def pack_scaled(path: str, q: Quantized) -> dict[str, Tensor]:
    only(q.layout, (FP8_TENSOR,), path, "comfy-scaled-fp8")
    tensors = {f"{path}.weight": q.codes, f"{path}.scale_weight": q.scale.reshape(())}
    return tensors if q.input_scale is None else {**tensors, f"{path}.scale_input": q.input_scale}
