"""Black Forest Labs' names with low nibble first and scales in rows, as diffusers' `BFLQuantizationConfig` reads.

See docs/checkpoints/bfl.md. The published FLUX.2-dev-NVFP4 files are another matter: BFL's names, but Comfy's layout
and Comfy's header, so `comfy.py` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.checkpoints import modelopt
from fewstep.checkpoints.layouts import FP8_ROW, NVFP4, only, refuse_rest
from fewstep.checkpoints.parts import Parsed, StoredLayer
from fewstep.checkpoints.stored import Stored
from fewstep.errors import CheckpointError
from fewstep.numerics.quantized import Quantized

WORDS = {torch.uint8: "nvfp4", torch.float8_e4m3fn: "fp8r"}


def parse(stored: Stored, config: Mapping[str, Any]) -> Parsed:
    """Every `weight_scale` makes a layer; its weight's type says which kind.

    Raises:
        CheckpointError: scales too few or too many.
    """
    layers: dict[str, StoredLayer] = {}
    used: set[str] = set()
    for scale in (name for name in stored.where if name.endswith(".weight_scale")):
        path = scale.removesuffix(".weight_scale")
        kind = stored.shape(f"{path}.weight").dtype if f"{path}.weight" in stored.where else None
        if kind not in WORDS:
            raise CheckpointError(f"{stored.path}: the scale {scale} must have a weight of uint8 or float8_e4m3fn.")
        word = WORDS[kind]
        more = ("weight_scale_2", "input_scale") if word == "nvfp4" else ()
        for name in more:
            if f"{path}.{name}" not in stored.where:
                raise CheckpointError(f"{stored.path}: the layer {path} is {word} and must have a {name}; it has none.")
        names = (f"{path}.weight", scale, *(f"{path}.{name}" for name in more))
        layers[path] = StoredLayer(word, names, partial(modelopt.make, path, bool(more)))
        used |= set(names)
    refuse_rest(stored, used, modelopt.SUFFIXES)
    return Parsed(layers, {name: name for name in stored.where if name not in used})


def pack(path: str, q: Quantized) -> dict[str, Tensor]:
    """The tensors of a layer."""
    only(q.layout, (NVFP4, FP8_ROW), path, "bfl")
    if (q.input_scale is None) == (q.layout == NVFP4):
        what = "must have an input_scale and has none" if q.layout == NVFP4 else "may have no input_scale and has one"
        raise CheckpointError(f"In the format bfl the layer {path} {what}.")
    return modelopt.pack(path, q)
