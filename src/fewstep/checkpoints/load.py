"""Loading pipelines, pre-quantized ones among them: weights of few bits go straight into their layers.

Never is a full-precision copy of the model made: the model is built without weights, each quantized layer holds its
codes and scales as they are stored, and reads them back in each call. That saves memory, not time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fewstep.checkpoints.checkpoint import Checkpoint
from fewstep.checkpoints.evidence import own_faults
from fewstep.checkpoints.formats import Source, assemble_opened, open_checkpoint
from fewstep.checkpoints.layouts import called
from fewstep.checkpoints.model import empty, expected
from fewstep.checkpoints.verify import misfits
from fewstep.errors import CheckpointError, InputError
from fewstep.files import read_json
from fewstep.models import load as plain
from fewstep.models.manifest import FILE
from fewstep.numerics.elements import E4M3
from fewstep.numerics.quantized import Layout, Quantized, fake
from fewstep.numerics.schemes import PER_TENSOR, Scheme
from fewstep.techniques.linears import EmulatedLinear

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

OURS = ("modelopt",)  # quant_method of folders that diffusers can't load itself
FILES = (".safetensors", ".gguf")


def load(source: str | Path, *, base: str | Path | None = None, **kwargs: Any) -> DiffusionPipeline:
    """A diffusers pipeline from `zoo:NAME`, a folder, a hub id, or a file of quantized weights.

    Quantized folders of ModelOpt are read and checked here; those of torchao, bitsandbytes and nunchaku by diffusers. A
    file (ComfyUI, BFL, GGUF), or the folder of a quantized denoiser alone, holds no pipeline: `base` names the one that
    it belongs to. All else is as in `fewstep.models.load.load`: weights come up in float32 unless `torch_dtype` is
    given, and the call's defaults are the manifest's.

    Args:
        source: what to load.
        base: the pipeline whose other components are taken.

    Raises:
        InputError: nothing there, no pipeline, or no `base` where one is needed.
        CheckpointError: a checkpoint that is damaged or not whole, the layer named.
    """
    dtype = kwargs.get("torch_dtype", kwargs.get("dtype", torch.float32))
    place = Path(source)
    if place.suffix in FILES or (place / "config.json").is_file():
        if not place.exists():
            raise InputError(f"There is no file {place}.")
        if base is None:
            raise InputError(f"{place} holds a denoiser alone: name in 'base' the pipeline that it belongs to.")
        return plain.load(base, transformer=_denoiser(place, base, dtype), **kwargs)
    if base is not None:
        raise InputError(f"'base' is for a denoiser alone, and {source} is a pipeline of its own.")
    found = plain.resolve(source)
    if isinstance(found, str):
        return _from_hub(found, kwargs)
    held = {
        name: model_of(folder, dtype=dtype)
        for name, folder in plain.component_folders(found).items()
        if name not in kwargs and _method(folder) in OURS
    }
    return plain.load(source, **held, **kwargs)


def model_of(path: str | Path, config: Source | None = None, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The diffusers model of a quantized checkpoint, ready to run on any device.

    Args:
        config: of the model, where a single file does not say it.
        dtype: of what is not quantized, and of the products.

    Raises:
        CheckpointError: damaged, not whole, or of numbers that no encoder makes; the layer is named.
        InputError: nothing there, or no one says which model it is.
    """
    opened = open_checkpoint(path, config)
    checkpoint = assemble_opened(opened)
    if faults := list(misfits(checkpoint, expected(opened.config or {}))):
        raise CheckpointError("\n".join(f"{path}: {fault}." for fault in faults))
    model: Any = empty(checkpoint.config)
    for weight in model.parameters():  # tables of positions keep their own precision
        weight.data = weight.data.to(dtype)
    tensors = {name: _in(checkpoint.plain[name], dtype) for name in checkpoint.plain}
    for layer in checkpoint.layers:
        q = checkpoint.layers[layer]
        if clauses := own_faults(q):
            raise CheckpointError(f"{path}: the layer {layer} is broken: {'; '.join(clauses)}.")
        linear = model.get_submodule(layer)
        assert isinstance(linear, nn.Linear)
        if linear.bias is not None:
            linear.bias = nn.Parameter(tensors.pop(f"{layer}.bias"), requires_grad=False)
        model.set_submodule(layer, held(q, linear))
    model.load_state_dict(tensors, strict=False, assign=True)
    model.register_to_config(quantization_config=_what(opened.format.name, checkpoint))
    ready: nn.Module = model.eval().requires_grad_(False)
    return ready


def held(q: Quantized, linear: nn.Linear) -> EmulatedLinear:
    """A layer that holds `q` as it is; its input is rounded where the checkpoint has a scale for it."""
    layout = None if q.input_scale is None else _of_input(q.layout)
    scheme = Scheme(called(q.layout), q.layout, layout, "as the checkpoint has it")
    if layout is None or q.input_scale is None:
        return EmulatedLinear(linear, scheme, held=q)
    largest = layout.format.largest * (E4M3.largest if layout.scale == "e4m3" else 1.0)
    return EmulatedLinear(linear, scheme, rounded=_Rounded(layout, q.input_scale * largest), held=q)


@dataclass(frozen=True)
class _Rounded:
    """An input rounded with a scale from a calibration: `amax` is the largest |x| that it stands for."""

    layout: Layout
    amax: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return fake(x.float(), self.layout, self.amax.to(x.device))


def _of_input(layout: Layout) -> Layout:
    """How an input with one calibrated scale is rounded beside such a weight."""
    return layout if layout.scale != "float32" else Layout(layout.element, PER_TENSOR)


def _in(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _what(format: str, checkpoint: Checkpoint) -> Mapping[str, Any]:
    return {"quant_method": "fewstep", "format": format, "layers": len(checkpoint.layers)}


def _method(folder: Path) -> str | None:
    """The `quant_method` that a component's config says, if any."""
    file = folder / "config.json"
    config = read_json(file) if file.is_file() else {}
    said = config.get("quantization_config") if isinstance(config, dict) else None
    return said.get("quant_method") if isinstance(said, dict) else None


def _denoiser(place: Path, base: str | Path, dtype: torch.dtype) -> Any:
    if place.suffix == ".gguf":
        return _gguf(place, base, dtype)
    says_itself = open_checkpoint(place).config is not None
    return model_of(place, None if says_itself else _config_folder(base), dtype)


def _gguf(place: Path, base: str | Path, dtype: torch.dtype) -> Any:
    import diffusers

    config = read_json(_config_folder(base) / "config.json")
    kind = getattr(diffusers, config["_class_name"])
    how = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
    return kind.from_single_file(str(place), config=str(_config_folder(base)), quantization_config=how)


def _config_folder(base: str | Path) -> Path:
    """The folder with the config of a pipeline's transformer; of a hub id only that file is fetched."""
    found = plain.resolve(base)
    if isinstance(found, Path):
        parts = plain.component_folders(found)
        if "transformer" not in parts:
            raise InputError(f"The 'base' must be a pipeline with a transformer. {base} has {', '.join(parts)}.")
        return parts["transformer"]
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(found, "transformer/config.json")).parent


def _from_hub(name: str, kwargs: Mapping[str, Any]) -> DiffusionPipeline:
    """A pipeline of the hub; where ModelOpt quantized its transformer, the whole is fetched and loaded from there."""
    config = plain.fetched(name, "transformer/config.json", kwargs)
    if config is None or _method(config.parent) not in OURS:
        return plain.load(name, **kwargs)
    from diffusers import DiffusionPipeline

    options = {key: kwargs[key] for key in plain.HUB_OPTIONS if key in kwargs}
    folder = DiffusionPipeline.download(name, **options)
    plain.fetched(name, FILE, kwargs)  # what diffusers leaves behind; it comes to lie in the same folder
    return load(folder, **{key: value for key, value in kwargs.items() if key not in options})
