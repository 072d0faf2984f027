"""Whether a checkpoint is whole and right: names, shapes, scales, and, with the original at hand, every value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.checkpoints.checkpoint import Checkpoint, Lazy, as_stored, plain_outline, take_rows
from fewstep.checkpoints.evidence import faults_beside, is_one, largest_block_scale, own_faults, relative
from fewstep.checkpoints.families import ORIGINAL_NAMES, from_ours
from fewstep.checkpoints.formats import Source, assemble_opened, open_checkpoint
from fewstep.checkpoints.model import Expected, expected
from fewstep.checkpoints.stored import open_stored
from fewstep.errors import CheckpointError
from fewstep.models.load import component_folder
from fewstep.numerics.quantized import Quantized, quantize

UNSEEN = (
    "Without the original these can't be seen: swapped nibbles, a scale that is another layer's, and, where the "
    "numbers have no structure of rows and columns, a wrong order of scales."
)
PLAIN = 1e-2  # how far a plain tensor may be from the original's: rounding to bfloat16 is 2^-9


@dataclass(frozen=True)
class Verdict:
    """What was found right.

    Attributes:
        format: a name in `FORMATS`.
        model: the diffusers class.
        layers: quantized layers checked.
        plain: other tensors checked.
        beside_original: whether every value was compared.
        warnings: what is allowed but odd, or could not be seen, one sentence each.
    """

    format: str
    model: str
    layers: int
    plain: int
    beside_original: bool
    warnings: tuple[str, ...]


def verify(
    path: str | Path, original: str | Path | Mapping[str, Tensor] | None = None, config: Source | None = None
) -> Verdict:
    """Check everything about the checkpoint at `path`.

    Args:
        original: the model it was made from: its folder, a pipeline with it as `transformer` (zoo model, folder or hub
            id), or its tensors by name.
        config: of the model, where neither the checkpoint nor `original` says it.

    Raises:
        CheckpointError: what is wrong, a line each with the file and the layer.
        InputError: nothing is at `path` or `original`, or no one says which model it is.
    """
    if isinstance(original, str | Path):
        original = component_folder(original, "transformer")
        config = original if config is None else config
    opened = open_checkpoint(path, config)
    checkpoint = assemble_opened(opened)
    faults = list(misfits(checkpoint, expected(opened.config or {})))
    warnings = list(opened.parsed.warnings)
    if not faults:
        originals = None if original is None else _originals(original)
        faults, more = _of_numbers(checkpoint, originals)
        warnings += more + ([UNSEEN] if original is None else [])
    if faults:
        raise CheckpointError("\n".join(f"{path}: {fault}." for fault in faults))
    return Verdict(
        opened.format.name,
        checkpoint.model,
        len(checkpoint.layers),
        len(checkpoint.plain),
        original is not None,
        tuple(warnings),
    )


def misfits(checkpoint: Checkpoint, model: Expected) -> Iterator[str]:
    """Names and shapes that are not the model's."""
    weights = {f"{path}.weight": path for path in checkpoint.layers}
    there = {*checkpoint.plain, *weights}
    for name in model.shapes:
        if name not in there:
            yield f"the tensor {name} of {model.model} is missing"
    for name in there:
        if name not in model.shapes:
            yield f"the tensor {name} is left over; {model.model} has none of that name"
        elif name in weights:
            if weights[name] not in model.linears:
                yield f"the layer {weights[name]} is quantized, but is no linear layer of {model.model}"
        elif tuple((tensor := plain_outline(checkpoint.plain, name)).shape) != model.shapes[name]:
            yield f"the tensor {name} is {tuple(tensor.shape)}, in {model.model} it is {model.shapes[name]}"
        elif tensor.is_floating_point() != (name in model.floating):
            yield f"the tensor {name} is {tensor.dtype}, in {model.model} it is of another kind"


def _of_numbers(checkpoint: Checkpoint, originals: Mapping[str, Tensor] | None) -> tuple[list[str], list[str]]:
    """Faults and warnings of the values themselves, a layer in memory at a time."""
    faults: list[str] = []
    seen: dict[str, tuple[float | None, float]] = {}
    for path in checkpoint.layers:
        try:
            q = checkpoint.layers[path]
        except CheckpointError as error:
            faults.append(str(error).split(": ", 1)[1].rstrip("."))
            continue
        found = own_faults(q)
        if not found and originals is not None:
            found = _beside(q, originals, path, checkpoint.model)
        faults += [f"the layer {path} is broken: {clause}" for clause in found]
        if q.global_scale is not None and not is_one(q.global_scale):
            seen[path] = (float(q.global_scale), largest_block_scale(q))
    for name in checkpoint.plain:
        faults += _plain_faults(name, checkpoint.plain[name], originals)
    return faults, list(_fused(checkpoint.model, seen))


def _beside(q: Quantized, originals: Mapping[str, Tensor], path: str, model: str) -> list[str]:
    name = f"{path}.weight"
    if name not in originals:
        return ["the original has no such layer"]
    if tuple(originals[name].shape) != q.shape:
        return [f"it is {q.shape}, in the original {tuple(originals[name].shape)}"]
    found = faults_beside(q, originals[name])
    place = from_ours(path, ORIGINAL_NAMES.get(model, ()))
    if not found or place is None or len(place.ours) < 2 or any(f"{p}.weight" not in originals for p in place.ours):
        return found
    parts = [originals[f"{part}.weight"] for part in place.ours]  # one matrix elsewhere, with one scale for all
    start = sum(len(part) for part in parts[: place.ours.index(path)])
    fused = take_rows(quantize(torch.cat(parts), q.layout), start, start + q.shape[0])
    return faults_beside(q, originals[name], fused)


def _plain_faults(name: str, tensor: Tensor, originals: Mapping[str, Tensor] | None) -> list[str]:
    if tensor.is_floating_point() and not tensor.float().isfinite().all():
        return [f"the tensor {name} has a number that is not finite"]
    if originals is None:
        return []
    if name not in originals or originals[name].shape != tensor.shape:
        return [f"the original has no tensor {name} of {tuple(tensor.shape)}"]
    x = originals[name].float()
    if (error := relative(tensor.float() - x, x)) > PLAIN:
        return [f"the tensor {name} differs from the original by {error:.3g}, right would be below {PLAIN}"]
    return []


def _fused(model: str, seen: Mapping[str, tuple[float | None, float]]) -> Iterator[str]:
    """Warnings about global scales: parts that engines fuse share one, and the largest block takes all of its range."""
    left = dict(seen)
    for place in _fused_paths(model, seen):
        together = {path: left.pop(path) for path in place if path in left}
        if len({scale for scale, _ in together.values()}) > 1:
            yield f"{', '.join(together)} don't share one global scale; an engine that fuses them takes one for all."
        elif together and max(top for _, top in together.values()) < 224:
            yield f"{', '.join(together)}: no block scale is above half of 448, so the global scale may not be theirs."
    for path, (_, top) in left.items():
        if top < 224:
            yield f"{path}: no block scale is above half of 448, so the global scale may not be its own."


def _fused_paths(model: str, seen: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    rules = ORIGINAL_NAMES.get(model, ())
    places = {place.ours for path in seen if (place := from_ours(path, rules)) and len(place.ours) > 1}
    yield from sorted(places)


def _originals(original: str | Path | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if isinstance(original, Mapping):
        return original
    stored = open_stored(Path(original))
    return Lazy({name: as_stored(name) for name in stored.where}, stored.numbers, stored.shape)
