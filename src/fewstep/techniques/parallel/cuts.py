"""How the layers of a transformer's block are cut for tensor parallelism (arXiv 1909.08053, section 3).

The first layers of an attention or a feed forward are cut by their outputs, the last ones by their inputs, so that one
sum over processes gives the whole. What is cut is read off each block's structure, and what that does not explain stays
whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from fewstep.models.dispatch import attentions
from fewstep.models.model import Model
from fewstep.techniques.linears.held import Held
from fewstep.techniques.linears.kernels import Own, held_by
from fewstep.techniques.linears.phases import is_same_at_all_steps
from fewstep.techniques.parallel.groups import gathered, size_of

# What diffusers calls the layers of an attention: those that give heads, and those that take all of them together.
FIRST = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
LAST = ("to_out.0", "to_add_out")
NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
BEFORE = ("group_norm", "spatial_norm", "norm_cross")  # of whole tokens, on their way into the first layers
# With the layers of a feed forward in the block beside it, one after both; or with one before both, too.
BESIDE = ("proj_mlp", "proj_out")
FUSED = ("to_qkv_mlp_proj", "to_out")
FEED_FORWARDS = (
    (("net.0.proj",), "net.2"),
    (("linear_in",), "linear_out"),
    (("linear_1", "linear_3"), "linear_2"),
    (("w1", "w3"), "w2"),
)


@dataclass(frozen=True)
class Cut:
    """How a layer is cut: by its outputs (axis 0 of the weight) or its inputs (1). These are several `stretches` side
    by side, of each of which a process has its part."""

    path: str
    axis: int
    stretches: tuple[int, ...]

    def own(self, whole: Tensor, dimension: int, rank: int, parts: int) -> Tensor:
        """One process's part of a tensor, as a copy, along the dimension that goes with the axis of the weight. It may
        be shorter than the weight there by a whole factor, as packed codes are and scales of blocks."""
        lengths = self._lengths(whole.shape[dimension])
        chunks = [stretch.chunk(parts, dimension) for stretch in torch.split(_plain(whole), lengths, dimension)]
        return torch.cat([chunk[rank] for chunk in chunks], dimension).view(whole.dtype)

    def whole(self, part: Tensor, dimension: int, group: Any) -> Tensor:
        """The inverse of `own`, of the parts of all processes."""
        parts, length = size_of(group), part.shape[dimension]
        lengths = [stretch // parts for stretch in self._lengths(length * parts)]
        every = gathered(_plain(part), [length] * parts, dimension, group).chunk(parts, dimension)
        pieces = zip(*(torch.split(one, lengths, dimension) for one in every), strict=True)
        return torch.cat([piece for stretch in pieces for piece in stretch], dimension).view(part.dtype)

    def divides(self, tensor: Tensor, dimension: int, parts: int) -> bool:
        """Whether the parts of a tensor are whole numbers, of each stretch."""
        return all(tensor.shape[dimension] * stretch % (sum(self.stretches) * parts) == 0 for stretch in self.stretches)

    def _lengths(self, length: int) -> list[int]:
        return [length * stretch // sum(self.stretches) for stretch in self.stretches]


def _plain(tensor: Tensor) -> Tensor:
    """Bytes as bytes: not all of torch, and no collective, takes FP8."""
    return tensor.view(torch.uint8) if tensor.itemsize == 1 else tensor


@dataclass(frozen=True)
class Unit:
    """Layers of a block that are cut together: what a process's first ones give is all that its last ones take.
    `heads`: of an attention, those of its queries and of its keys."""

    path: str
    cuts: tuple[Cut, ...]
    heads: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What is cut in a block, and which layers stay whole: (path, why)."""

    units: tuple[Unit, ...]
    whole: tuple[tuple[str, str], ...]


def plan(block: nn.Module, parts: int, keep: Sequence[str]) -> Plan:
    """How a block is shared by so many processes; `keep`: what the paths of modulation layers have in them."""
    found = {path: _attention(block, path) for path, _ in attentions(block)}
    others = [path for path, _ in block.named_modules() if path]
    found |= {path: unit for path in others if (unit := _feed_forward(block, path)) is not None}
    found = {path: _even(unit, parts) for path, unit in found.items()}
    units = tuple(unit for unit in found.values() if isinstance(unit, Unit))
    cut = {cut.path for unit in units for cut in unit.cuts}
    reasons = {f"{path}.": why for path, why in found.items() if isinstance(why, str)}
    whole: list[tuple[str, str]] = []
    for path in others:
        if path not in cut and _is_matrix(block.get_submodule(path)):
            usual = "sets scale and shift" if any(name in path for name in keep) else "what it is for is not known"
            whole.append((path, next((why for owner, why in reasons.items() if path.startswith(owner)), usual)))
    return Plan(units, tuple(whole))


def _even(unit: Unit | str, parts: int) -> Unit | str:
    """A unit, or why it stays whole. Heads that don't divide are a mistake, and no reason to leave them whole."""
    if isinstance(unit, str) or any(heads % parts for heads in unit.heads):
        return unit
    odd = [length for cut in unit.cuts for length in cut.stretches if length % parts]
    return f"its {odd[0]} features can't be shared by {parts}" if odd else unit


def _attention(block: nn.Module, path: str) -> Unit | str:
    """How an attention is cut, or why it is not."""
    attention: Any = block.get_submodule(path)
    fused, first, last = (_layers(attention, names) for names in (FUSED, FIRST, LAST))
    known = {name.partition(".")[0] for name in (*fused, *FIRST, *LAST, *NORMS, *BEFORE)}
    if strange := sorted({name.partition(".")[0] for name in _weighted(attention)} - known):
        return f"it has {', '.join(strange)}, which is not known"
    if len(fused) == len(FUSED):
        before, after = fused.values()
        inner, mlp = attention.inner_dim, after.in_features - attention.inner_dim
        stretches = (inner,) * 3 + (mlp,) * ((before.out_features - 3 * inner) // mlp)
        return _unit(path, [Cut(FUSED[0], 0, stretches), Cut(FUSED[1], 1, (inner, mlp))], (attention.heads,))
    heads = getattr(attention, "heads", None)
    if type(heads) is not int or not {"to_q", "to_k", "to_v"} <= first.keys():
        return "it does not give heads by to_q, to_k and to_v"
    inner = first["to_q"].out_features
    cuts = [Cut(name, 0, (layer.out_features,)) for name, layer in first.items()]
    cuts += [Cut(name, 1, (layer.in_features,)) for name, layer in last.items()]
    for name in NORMS:
        norm = getattr(attention, name, None)
        if (width := _width(norm)) in (None, inner // heads):
            continue
        if not isinstance(norm, nn.RMSNorm | RMSNorm) or getattr(norm, "bias", None) is not None:
            return f"its {name} is a {type(norm).__name__} of all heads"
        cuts.append(Cut(name, 0, (width,)))
    beside = () if last else _beside(block, path.rpartition(".")[0], inner)
    if not last and not beside:
        return "no layer was found that takes its heads"
    return _unit(path, cuts, (heads, first["to_k"].out_features * heads // inner), beside)


def _beside(block: nn.Module, path: str, inner: int) -> tuple[Cut, ...]:
    """The layers of a feed forward whose last one takes the heads of an attention, too."""
    layers = list(_layers(block.get_submodule(path), BESIDE).values())
    if len(layers) < len(BESIDE) or layers[1].in_features != inner + layers[0].out_features:
        return ()
    mlp = layers[0].out_features
    return _unit(path, [Cut(BESIDE[0], 0, (mlp,)), Cut(BESIDE[1], 1, (inner, mlp))]).cuts


def _feed_forward(block: nn.Module, path: str) -> Unit | str | None:
    """How a feed forward is cut, or why it is not; None where the module is none."""
    module = block.get_submodule(path)
    for first, last in FEED_FORWARDS:
        layers = _layers(module, (*first, last))
        if len(layers) <= len(first):
            continue
        inner = layers[last].in_features
        own = sum(len(_weighted(layer)) for layer in layers.values())
        if len(_weighted(module)) != own or any(layers[name].out_features % inner for name in first):
            return "it is not a feed forward of the usual layers alone"
        # A gated one has gates and values side by side.
        cuts = [Cut(name, 0, (inner,) * (layers[name].out_features // inner)) for name in first]
        return _unit(path, [*cuts, Cut(last, 1, (inner,))])
    return None


def _unit(path: str, cuts: list[Cut], heads: tuple[int, ...] = (), beside: tuple[Cut, ...] = ()) -> Unit:
    """Of cuts by their paths in the module at `path`, and of some by those in the block."""
    inside = (replace(cut, path=f"{path}.{cut.path}" if path else cut.path) for cut in cuts)
    return Unit(path, (*inside, *beside), heads)


def _layers(module: nn.Module, names: Iterable[str]) -> dict[str, Any]:
    """The linear layers of these names that a module has; quantized and adapted ones, too."""
    modules = dict(module.named_modules())
    return {name: modules[name] for name in names if hasattr(modules.get(name), "out_features")}


def _weighted(module: nn.Module) -> list[str]:
    """The names of what a module's layers have: parameters, and of those that have none, themselves."""
    own = [path for path, part in module.named_modules() if isinstance(part, Own)]
    return [*(name for name, _ in module.named_parameters()), *own]


def _is_matrix(layer: nn.Module) -> bool:
    return isinstance(layer, Own) or any(value.ndim > 1 for value in layer.parameters(recurse=False))


def _width(norm: nn.Module | None) -> int | None:
    """Over how many features a norm goes; None: over all that it is given."""
    weight = getattr(norm, "weight", None)
    shape = getattr(norm, "normalized_shape", getattr(norm, "dim", getattr(weight, "shape", None)))
    return prod(shape) if isinstance(shape, tuple) else None


def uncuttable(model: Model, name: str, parts: int) -> list[str]:
    """Why the layers of the denoiser called `name` can't be shared by so many processes, one sentence each."""
    module, blocks = model.denoisers[name], model.blocks(name)
    plans = [(block, plan(block.module, parts, model.family(name).keep)) for block in blocks]
    if odd := [heads for _, one in plans for unit in one.units for heads in unit.heads if heads % parts]:
        return [f"The {min(odd)} heads of the {name} can't be shared by {parts} (tensor)."]
    if not any(one.units for _, one in plans):
        left = dict.fromkeys(f"{path}: {why}" for _, one in plans for path, why in one.whole)
        why = "; ".join(left) or "no blocks were found that repeat"
        return [f"Parallel found no layer to cut in the {name} ({type(module).__name__}): {why}."]
    uses = Counter(id(value) for _, value in module.named_parameters(remove_duplicate=False))
    for block, cut in ((block, cut) for block, one in plans for unit in one.units for cut in unit.cuts):
        if why := _uncuttable(block.module.get_submodule(cut.path), cut, parts, uses):
            return [f"Parallel can't cut the {block.path}.{cut.path} of the {name}, {why}: leave 'tensor' out."]
    return []


def _uncuttable(layer: nn.Module, cut: Cut, parts: int, uses: Counter[int]) -> str:
    """Why a layer can't be cut; nothing where it can."""
    if "forward" in layer.__dict__ or layer._forward_hooks or layer._forward_pre_hooks:
        return "which is moved or watched by hooks"
    if (held := held_by(layer)) is not None:
        return _uneven(held, cut, parts) if is_same_at_all_steps(layer) else "which is another one at 'precise_steps'"
    weight: Any = getattr(layer, "weight", None)
    if type(layer) not in (nn.Linear, nn.RMSNorm, RMSNorm):
        return f"which is a {type(layer).__name__}, not a linear layer"
    if weight is None:  # of a norm
        return ""
    if type(weight) is not nn.Parameter or not weight.is_floating_point():
        return f"whose weight is a {type(weight).__name__} of {weight.dtype}, which is not known"
    if weight.is_meta:
        return "whose weight is elsewhere"
    return "whose weight another layer has, too" if uses[id(weight)] > 1 else ""


def _uneven(held: Held, cut: Cut, parts: int) -> str:
    """Where the blocks of a quantized weight don't divide; nothing where they do."""
    odd: list[Tensor] = []

    def look(tensor: Tensor, dimension: int) -> Tensor:
        if not cut.divides(tensor, dimension, parts):
            odd.append(tensor)
        return tensor

    held.along(cut.axis, look)
    side = held.weight.layout.block[cut.axis]
    lengths = ", ".join(str(stretch // parts) for stretch in cut.stretches)
    return f"whose parts of {lengths} features are no whole blocks of {side} that share a scale" if odd else ""
