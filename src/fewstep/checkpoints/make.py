"""Quantized checkpoints made from plain diffusers models: read, quantized and written one matrix at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.checkpoints.checkpoint import Checkpoint, Get, Lazy, Make, as_stored
from fewstep.checkpoints.families import ORIGINAL_NAMES, from_ours
from fewstep.checkpoints.formats import FORMATS, write
from fewstep.checkpoints.model import CLASS, empty, expected, read_config
from fewstep.checkpoints.stored import open_stored
from fewstep.checkpoints.verify import misfits
from fewstep.errors import CheckpointError, InputError, bad_value
from fewstep.files import replacing
from fewstep.machine import versions
from fewstep.models.load import INDEX, component_folder, copy_pipeline, local
from fewstep.models.model import denoises
from fewstep.numerics.quantized import Layout, Quantized, outline, quantize
from fewstep.numerics.schemes import Scheme
from fewstep.techniques.linears.kernels import tile
from fewstep.techniques.linears.layers import Rules, hints_in, layers_of, left_alone, why_none

# Projections of one input, which engines fuse into one matrix: they must share the scale that a matrix has once.
FUSED = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))
HINTS = Rules(skip=(), least=128, keep=None)


@dataclass(frozen=True)
class Made:
    """A checkpoint that was written.

    Attributes:
        path: of the file or folder.
        checkpoint: the quantized model in it, and
        original: the folder that it was made from, for `verify`.
        format: a name in `FORMATS`.
        layers: quantized layers.
        skipped: why others were left alone -> how many.
        bytes_before, bytes_after: of the model's tensors.
    """

    path: str
    checkpoint: str
    original: str
    format: str
    layers: int
    skipped: Mapping[str, int]
    bytes_before: int
    bytes_after: int


def make(
    source: str | Path,
    out: str | Path,
    scheme: Scheme,
    *,
    format: str = "modelopt",
    component: str = "transformer",
    rules: Rules = HINTS,
) -> Made:
    """Quantize a component of a pipeline, or a model, and write it; no more than one matrix is in memory.

    Args:
        source: a pipeline (zoo model, folder or hub id), or the folder of one diffusers model.
        out: of a pipeline in the format of a folder, a whole pipeline; else the model's folder or file.
        component: of the pipeline.
        rules: which layers stay precise.

    Raises:
        InputError: no such model or format, a scheme that no checkpoint can hold, or no layer to quantize.
        CheckpointError: weights that are damaged, or what the format can't hold.
        MachineError: `out` can't be written; what was there stays.
    """
    if format not in FORMATS:
        raise InputError(bad_value("format", "a checkpoint", f"one of {', '.join(FORMATS)}", format))
    if scheme.rank:
        raise InputError(f"No checkpoint format here holds the low-rank branch of {scheme.name}: take another scheme.")
    place = local(source)
    model, is_pipeline = component_folder(place, component), (place / INDEX).exists()
    checkpoint, skipped = quantized(model, scheme, rules, component)
    with replacing(out) as aside:
        if is_pipeline and FORMATS[format].folder:
            copy_pipeline(place, aside, but=(component,))
            write(checkpoint, aside / component, format)
        else:
            write(checkpoint, aside, format)
    written = Path(out) / component if (Path(out) / INDEX).exists() else Path(out)
    before, after = (open_stored(folder).nbytes for folder in (model, written))
    return Made(str(out), str(written), str(model), format, len(checkpoint.layers), skipped, before, after)


def quantized(
    folder: Path, scheme: Scheme, rules: Rules, component: str = "transformer"
) -> tuple[Checkpoint, dict[str, int]]:
    """The model in `folder` with layers that are quantized when they are asked for, and why others were left alone.

    Raises:
        InputError: no layer to quantize, or no diffusers model.
        CheckpointError: it is quantized already, or its weights are not those that its config says.
    """
    config = read_config(folder)
    if "quantization_config" in config:
        raise CheckpointError(f"{folder} is quantized already: 'fewstep convert' writes it in another format.")
    model, stored = empty(config), open_stored(folder)
    sides = tile(scheme, "cpu", emulate=True)
    hints = hints_in(model, denoises=denoises(component, model))
    found = list(layers_of(model, component, scheme, rules, sides, hints))
    chosen = [layer.path for layer in found if layer.skipped is None]
    if not chosen:
        raise InputError(f"There is no layer to quantize in {folder}: {why_none(found)}.")
    largest = _largest(str(config[CLASS]), frozenset(chosen), stored.numbers)
    layers: dict[str, Make[Quantized]] = {path: partial(_layer, path, scheme.weight, largest) for path in chosen}
    weights = {f"{path}.weight" for path in chosen}
    plain = {name: as_stored(name) for name in stored.where if name not in weights}
    facts = {"producer": {"name": "fewstep", **versions()}, "scheme": scheme.name, "source": folder.name}
    checkpoint = Checkpoint(
        str(config[CLASS]),
        config,
        Lazy(plain, stored.numbers, stored.shape),
        Lazy(layers, stored.numbers, stored.shape),
        facts,
    )
    absent = sorted(weights - stored.where.keys())
    faults = [f"the tensor {absent[0]} is missing"] if absent else list(misfits(checkpoint, expected(config)))
    if faults:
        raise CheckpointError("\n".join(f"{folder}: {fault}." for fault in faults))
    return checkpoint, left_alone(found)


def _layer(path: str, layout: Layout, largest: Callable[[str], Tensor | None], get: Get) -> Quantized:
    weight = get(f"{path}.weight")
    if weight.is_meta:
        return outline(layout, (weight.shape[0], weight.shape[1]))
    return quantize(weight, layout, largest(path))


def _largest(model: str, chosen: frozenset[str], numbers: Get) -> Callable[[str], Tensor | None]:
    """For each layer the largest |weight| of all that it is fused with; None where it stands alone."""

    @cache
    def of_all(paths: tuple[str, ...]) -> Tensor:
        each = [numbers(f"{path}.weight").abs().amax().float() for path in paths]
        return max(each, key=float)

    def largest(path: str) -> Tensor | None:
        together = tuple(other for other in fused_with(path, model) if other in chosen)
        return of_all(together) if len(together) > 1 else None

    return largest


def fused_with(path: str, model: str) -> tuple[str, ...]:
    """The layers, `path` among them, that the original code or an engine has as one matrix."""
    place = from_ours(path, ORIGINAL_NAMES.get(model, ()))
    if place is not None and len(place.ours) > 1:
        return place.ours
    parent, _, name = path.rpartition(".")
    siblings = next((names for names in FUSED if name in names), (name,))
    return tuple(f"{parent}.{sibling}" for sibling in siblings)


def facts_of(made: Made) -> dict[str, Any]:
    """For people: what was made, in MB."""
    return {
        "written": made.path,
        "format": made.format,
        "layers": made.layers,
        "skipped": dict(made.skipped),
        "megabytes before": round(made.bytes_before / 1e6, 2),
        "megabytes after": round(made.bytes_after / 1e6, 2),
        "part": round(made.bytes_after / made.bytes_before, 4),
    }
