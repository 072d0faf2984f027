"""INT8 or FP8 products in the linear layers of the denoiser's blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import nn

from fewstep.errors import bad_value
from fewstep.machine import Machine
from fewstep.models.model import Model
from fewstep.techniques.base import Engaged, Stage, Technique, strings, undo_all
from fewstep.techniques.linears import Int8Linear, can_pack, stored_bytes, torchao_linear

FEATURE = {"int8-dynamic": "int8", "fp8-dynamic": "fp8"}
FP8_TILE = 16  # the FP8 product takes sizes that are multiples of this


@dataclass(frozen=True)
class Layer:
    """One linear layer of `denoiser`; `skipped` says why it is left alone, None when it is quantized."""

    denoiser: nn.Module
    path: str
    linear: nn.Linear
    skipped: str | None


def skip_reason(
    path: str, shape: tuple[int, ...], *, in_block: bool, keep: tuple[str, ...], least: int, tile: int
) -> str | None:
    """Why the linear layer at `path`, of `shape` (out, in), must stay in full precision; None when it need not.

    Outside the blocks are the layers through which every token or the whole time embedding passes: they cost little,
    and an error there reaches everything. `keep` holds substrings of paths; `least` is the fewest features on either
    side, and both must be multiples of `tile`.
    """
    if not in_block:
        return "outside the blocks"
    if any(part in path for part in keep):
        return "named as one to keep precise"
    if min(shape) < least:
        return f"smaller than {least}"
    if any(size % tile for size in shape):
        return f"no multiple of {tile}"
    return None


@dataclass(frozen=True)
class Quantize(Technique):
    """Linear layers of the blocks in 8 bits.

    Attributes:
        scheme: `int8-dynamic` (weight per output channel; activation per tensor on a CPU, per token on a GPU) or
            `fp8-dynamic` (the same in FP8 e4m3; NVIDIA GPU only).
        skip: substrings of layer paths to leave alone, beside those that the model's family names.
        min_features: layers with fewer inputs or outputs are left alone: converting their input costs more than it
            saves.
    """

    name: ClassVar[str] = "quantize"
    stage: ClassVar[Stage] = Stage.QUANTIZE
    claims: ClassVar[frozenset[str]] = frozenset({"linear.weight"})

    scheme: str = "int8-dynamic"
    skip: tuple[str, ...] = ()
    min_features: int = 128

    def faults(self) -> list[str]:
        rules = {
            "scheme": (self.scheme in FEATURE, f"one of {', '.join(FEATURE)}"),
            "skip": (strings(self.skip), "a list of parts of layer names"),
            "min_features": (type(self.min_features) is int and self.min_features >= 1, "a whole number, at least 1"),
        }
        return [bad_value(name, "Quantize", rule, getattr(self, name)) for name, (ok, rule) in rules.items() if not ok]

    def problems(self, model: Model, machine: Machine) -> list[str]:
        found = [missing] if (missing := machine.missing(FEATURE[self.scheme])) else []
        if machine.device == "cpu" and not can_pack():
            found.append(
                f"torch {torch.__version__} no longer has the INT8 kernel that Quantize uses: install torch 2.13."
            )
        if machine.device != "cpu" and find_spec("torchao") is None:
            found.append("Quantize needs torchao on this machine: install fewstep[quantize].")
        if not any(layer.skipped is None for layer in self.layers(model)):
            found.append(
                f"Quantize found no layer to quantize in {type(model.pipe).__name__}: in the blocks, none has at least "
                f"{self.min_features} inputs and outputs and a name outside 'skip'."
            )
        return found

    def apply(self, model: Model, machine: Machine) -> Engaged:
        layers = self.layers(model)
        steps: list[Callable[[], None]] = []
        undo = undo_all(steps)
        before = after = 0
        try:
            for layer in layers:
                if layer.skipped is None:
                    quantized = self._convert(layer.linear, machine)
                    _swap(layer, quantized, steps)
                    before, after = before + stored_bytes(layer.linear), after + stored_bytes(quantized)
        except BaseException:
            undo()
            raise
        return Engaged(self.name, {**_counts(layers), "bytes_before": before, "bytes_after": after}, undo)

    def layers(self, model: Model) -> list[Layer]:
        """Every plain linear layer of the denoisers, with what happens to it."""
        return [layer for name in model.denoisers for layer in self._layers_of(model, name)]

    def _layers_of(self, model: Model, name: str) -> list[Layer]:
        denoiser = model.denoisers[name]
        blocks = tuple(f"{block.path}." for block in model.blocks(name))
        rules: dict[str, Any] = {
            "keep": (*model.family(name).keep, *self.skip),
            "least": self.min_features,
            "tile": FP8_TILE if self.scheme == "fp8-dynamic" else 1,
        }
        return [
            Layer(denoiser, path, part, skip_reason(path, part.weight.shape, in_block=path.startswith(blocks), **rules))
            for path, part in denoiser.named_modules()
            if type(part) is nn.Linear
        ]

    def _convert(self, linear: nn.Linear, machine: Machine) -> nn.Module:
        return Int8Linear(linear) if machine.device == "cpu" else torchao_linear(linear, self.scheme)


def _swap(layer: Layer, quantized: nn.Module, steps: list[Callable[[], None]]) -> None:
    quantized.train(layer.linear.training)
    layer.denoiser.set_submodule(layer.path, quantized)
    steps.append(lambda: layer.denoiser.set_submodule(layer.path, layer.linear))


def _counts(layers: list[Layer]) -> dict[str, Any]:
    reasons = Counter(layer.skipped for layer in layers if layer.skipped)
    return {
        "layers_quantized": sum(layer.skipped is None for layer in layers),
        "layers_skipped": reasons.total(),
        "skipped": dict(reasons),
    }
