"""Weights in 16 bits, for chosen parts of the pipeline; the original tensors are kept, so that undoing is exact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from operator import is_
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.errors import bad_value
from fewstep.machine import Machine
from fewstep.models.hooks import Hook, Hooks
from fewstep.models.model import Model
from fewstep.techniques.base import Engaged, Stage, Technique, strings, undo_all

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# Inputs that a denoiser converts itself, where it needs to: times and positions lose their meaning in 16 bits.
NEVER_CAST = ("timestep", "sigma", "guidance", "ids", "rotary", "position", "freqs")


@dataclass(frozen=True)
class Part:
    """One component and why it is left alone; `skipped` is None for one that is cast."""

    name: str
    module: nn.Module
    skipped: str | None


def float32_names(module: nn.Module, dtype: torch.dtype) -> set[str]:
    """Names of the parts that the model's own code wants in float32 when the rest is in `dtype`.

    In transformers `_keep_in_fp32_modules` is about float16 alone, and the strict list about both; diffusers has one
    list.
    """
    names = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    strict = getattr(module, "_keep_in_fp32_modules_strict", None)
    if strict is None:
        return names
    return set(strict) | (names if dtype == torch.float16 else set())


def stays_float32(path: str, kept: Iterable[str]) -> bool:
    """Whether the tensor at `path` belongs to a part of one of these names."""
    return any(part in path.split(".") for part in kept)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in `dtype`, inside tuples, lists and dicts too; anything else as it is.

    Where nothing in a list or dict needs it, that very object: a VAE may keep its state in a list that it was given.
    """
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        items = [cast(item, dtype) for item in value]
        return value if all(map(is_, items, value)) else type(value)(items)
    if type(value) is dict:
        named = {key: cast(item, dtype) for key, item in value.items()}
        return value if all(map(is_, named.values(), value.values())) else named
    if isinstance(value, dict):  # a model's output, of a class of its own, which no one else holds yet
        for key, item in value.items():
            value[key] = cast(item, dtype)
    return value


def first_float(values: Iterable[Any]) -> torch.dtype | None:
    """The dtype of the first floating tensor: of a module's main input."""
    return next((v.dtype for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)


@dataclass(frozen=True)
class Precision(Technique):
    """Weights and arithmetic in 16 bits.

    Attributes:
        dtype: `bfloat16` or `float16`.
        components: names of pipeline components; empty: the denoisers, the text encoders and the VAE, where safe.
    """

    name: ClassVar[str] = "precision"
    stage: ClassVar[Stage] = Stage.WEIGHTS
    claims: ClassVar[frozenset[str]] = frozenset({"linear.weight"})

    dtype: str = "bfloat16"
    components: tuple[str, ...] = ()

    def faults(self) -> list[str]:
        rules = {
            "dtype": (self.dtype in DTYPES, f"one of {', '.join(DTYPES)}"),
            "components": (strings(self.components), "a list of names of components"),
        }
        return [bad_value(name, "Precision", rule, getattr(self, name)) for name, (ok, rule) in rules.items() if not ok]

    def problems(self, model: Model, machine: Machine) -> list[str]:
        found = []
        if self.dtype == "bfloat16" and (missing := machine.missing("bf16")):
            found.append(missing)
        if self.dtype == "float16" and machine.device == "cpu":
            found.append("CPUs compute float16 in software, slower than float32: use bfloat16 here, or a GPU.")
        found += [
            bad_value("components", "Precision", f"names among {', '.join(model.modules)}", name)
            for name in self.components
            if name not in model.modules
        ]
        if not found and all(part.skipped for part in self.parts(model)):
            found.append(
                f"Precision found nothing to cast: every chosen component is in {self.dtype} already, or unsafe."
            )
        return found

    def apply(self, model: Model, machine: Machine) -> Engaged:
        dtype, parts = DTYPES[self.dtype], self.parts(model)
        steps: list[Callable[[], None]] = []
        before = _bytes(model)
        kept = sum(_cast_weights(part.module, dtype, steps) for part in parts if part.skipped is None)
        steps.append(_hooks(model).install().remove)
        facts = {
            "dtype": self.dtype,
            "components": [part.name for part in parts if part.skipped is None],
            "skipped": {part.name: part.skipped for part in parts if part.skipped},
            "tensors_kept_float32": kept,
            "bytes_before": before,
            "bytes_after": _bytes(model),
        }
        return Engaged(self.name, facts, undo_all(steps))

    def parts(self, model: Model) -> list[Part]:
        """The chosen components, with what happens to each."""
        vae = [name for name, module in model.modules.items() if module is model.vae]
        names = self.components or (*model.denoisers, *model.text_encoders, *vae)
        modules = ((name, model.modules[name]) for name in names)
        return [Part(name, module, self._skip_reason(module)) for name, module in modules]

    def _skip_reason(self, module: nn.Module) -> str | None:
        if not any(tensor.dtype == torch.float32 for tensor in module.parameters()):
            return "has no float32 weights"
        if self.dtype == "float16" and getattr(getattr(module, "config", None), "force_upcast", False):
            return "overflows in float16, says its config (force_upcast)"
        return None


def _cast_weights(module: nn.Module, dtype: torch.dtype, steps: list[Callable[[], None]]) -> int:
    """Cast float32 parameters and buffers, and note how to put the very tensors back. Returns how many stay float32."""
    kept, names = 0, float32_names(module, dtype)
    for path, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.dtype != torch.float32:
            continue
        if stays_float32(path, names):
            kept += 1
            continue
        original = tensor.data
        tensor.data = original.to(dtype)
        steps.append(partial(_restore, tensor, original))
    return kept


def _restore(tensor: Tensor, original: Tensor) -> None:
    tensor.data = original


def _hooks(model: Model) -> Hooks:
    """Casts at the doors of all that takes latents or embeddings, cast itself or not: what comes in may be either."""
    doors = [*model.denoisers.values(), *(model.vae.children() if model.vae else ())]
    return Hooks(Hook(module, partial(_cast_at_door, dtype)) for module in doors if (dtype := main_dtype(module)))


def main_dtype(module: nn.Module) -> torch.dtype | None:
    """The floating dtype of most of a module's weights; None for a module without any."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in module.parameters():
        if tensor.is_floating_point():
            sizes[tensor.dtype] += tensor.numel()
    return max(sizes, key=sizes.__getitem__) if sizes else None


def _cast_at_door(dtype: torch.dtype, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Inputs to the module's dtype, outputs back to that of its main input, so that latents stay as they were."""
    outside = first_float([*args, *kwargs.values()])
    if outside is None:
        return forward(*args, **kwargs)
    named = {
        name: value if any(part in name for part in NEVER_CAST) else cast(value, dtype)
        for name, value in kwargs.items()
    }
    output = forward(*(cast(value, dtype) for value in args), **named)
    return cast(output, outside)


def _bytes(model: Model) -> int:
    return sum(tensor.nbytes for module in model.modules.values() for tensor in module.parameters())
