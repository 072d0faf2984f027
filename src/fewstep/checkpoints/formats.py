"""All formats as data, and what one does with them: tell, read, write, convert."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.checkpoints import bfl, comfy, modelopt, torchao
from fewstep.checkpoints.checkpoint import Checkpoint
from fewstep.checkpoints.families import ORIGINAL_NAMES, Rule, used
from fewstep.checkpoints.model import CLASS, expected, read_config
from fewstep.checkpoints.parts import Parsed, assemble, groups
from fewstep.checkpoints.stored import Group, Stored, open_stored, write_file, write_folder
from fewstep.errors import CheckpointError, InputError, bad_value
from fewstep.files import read_json, replacing
from fewstep.numerics.quantized import Quantized

OURS = "fewstep"  # in a header: the model's config and facts, which other readers leave alone
BFL_MODELS = ("FluxTransformer2DModel", "Flux2Transformer2DModel")
Source = str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """One way to store a quantized model.

    Attributes:
        name: in commands.
        folder: whether it is a diffusers folder; else it is one file with the original code's names.
        prefix: before every name in such a file.
        parse: headers and config -> layers and plain tensors.
        pack: a layer's path in the file, and the layer -> its tensors.
        header: what the file's header says of the layers.
        config: `quantization_config` of a folder.
        extra: tensors that belong to no layer.
        doc: one line for people.
    """

    name: str
    folder: bool
    parse: Callable[[Stored, Mapping[str, Any]], Parsed]
    pack: Callable[[str, Quantized], dict[str, Tensor]]
    doc: str
    prefix: str = ""
    header: Callable[[Checkpoint, list[Group]], dict[str, str]] | None = None
    config: Callable[[Checkpoint], dict[str, Any]] | None = None
    extra: Callable[[], dict[str, Tensor]] | None = None


def _comfy_header(checkpoint: Checkpoint, written: list[Group]) -> dict[str, str]:
    return comfy.header({name: tensor for group in written for name, tensor in group.outline.items()})


FORMATS = {
    one.name: one
    for one in (
        Format(
            "modelopt",
            True,
            modelopt.parse,
            modelopt.pack,
            "NVIDIA ModelOpt's folder: TensorRT-LLM, SGLang, vLLM-Omni",
            config=modelopt.quantization_config,
        ),
        Format(
            "torchao",
            True,
            torchao.parse,
            torchao.pack,
            "a folder that diffusers loads by torchao",
            header=lambda checkpoint, written: torchao.header(checkpoint),
            config=torchao.quantization_config,
        ),
        Format(
            "comfy",
            False,
            comfy.parse,
            comfy.pack,
            "ComfyUI's file, its layers named in the header",
            prefix=comfy.PREFIX,
            header=_comfy_header,
        ),
        Format(
            "comfy-scaled-fp8",
            False,
            comfy.parse_scaled,
            comfy.pack_scaled,
            "ComfyUI's older FP8 file",
            prefix=comfy.PREFIX,
            extra=lambda: {comfy.PREFIX + comfy.MARKER: torch.zeros(0, dtype=torch.float8_e4m3fn)},
        ),
        Format("bfl", False, bfl.parse, bfl.pack, "a file for diffusers' BFLQuantizationConfig"),
    )
}


@dataclass(frozen=True)
class Opened:
    """A checkpoint of which only headers are read."""

    format: Format
    stored: Stored
    parsed: Parsed
    config: Mapping[str, Any] | None


def detect(path: str | Path) -> str:
    """The name of the format of a file or folder, from headers and `config.json` alone.

    Raises:
        CheckpointError: none that fewstep knows, or damaged.
        InputError: there is nothing at `path`.
    """
    place = _there(path)
    return _detect(open_stored(place), _config_of(place))


def open_checkpoint(path: str | Path, config: Source | None = None) -> Opened:
    """The headers of a checkpoint, its layers found.

    Args:
        config: of the model, where a single file does not say it: a config, its file, or a model's folder.

    Raises:
        CheckpointError: damaged, of no known format, or with scales too few or too many.
        InputError: nothing is at `path`, or no model's config at `config`.
    """
    place = _there(path)
    stored, said = open_stored(place), _config_of(place)
    format = FORMATS[_detect(stored, said)]
    try:
        parsed = format.parse(stored, said)
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # JSON of another shape than the format's
        raise CheckpointError(
            f"{place}: its header or config.json is not as the format {format.name} has it."
        ) from error
    if config is not None:
        model: Mapping[str, Any] | None = read_config(config)
    elif CLASS in said:
        model = said
    else:
        model = _ours(stored).get("config")
    return Opened(format, stored, parsed, model)


def read(path: str | Path, config: Source | None = None) -> Checkpoint:
    """The canonical checkpoint at `path`; its numbers are read when they are asked for.

    Raises:
        CheckpointError: damaged, of no known format, scales too few or too many, or names that the model lacks.
        InputError: nothing at `path`, or a file that does not say its model's config while none is given.
    """
    return assemble_opened(open_checkpoint(path, config))


def assemble_opened(opened: Opened) -> Checkpoint:
    """The canonical checkpoint of opened headers."""
    if opened.config is None:
        raise InputError(
            f"{opened.stored.path} does not say which model it is: give a diffusers folder or config.json as config."
        )
    model = expected(opened.config)
    rules = ORIGINAL_NAMES.get(model.model)
    if opened.format.folder or rules is None or not used([*opened.parsed.plain, *opened.parsed.layers], rules):
        rules = None
    checkpoint = assemble(opened.stored, opened.parsed, model, rules)
    facts = {**checkpoint.facts, **_ours(opened.stored).get("facts", {})}
    return Checkpoint(checkpoint.model, checkpoint.config, checkpoint.plain, checkpoint.layers, facts)


def write(checkpoint: Checkpoint, path: str | Path, format: str) -> Path:
    """Write a checkpoint as `format`, one layer in memory at a time; what was at `path` is replaced at the end.

    Returns:
        the file or folder.

    Raises:
        InputError: no such format.
        CheckpointError: what the format can't hold, the layer named.
        MachineError: the disk is full or the place can't be written to.
    """
    if format not in FORMATS:
        raise InputError(bad_value("format", "a checkpoint", f"one of {', '.join(FORMATS)}", format))
    one = FORMATS[format]
    if not checkpoint.layers:
        raise CheckpointError(
            f"The checkpoint of {checkpoint.model} has no quantized layer; none of the formats is for it."
        )
    rules = None if one.folder else _rules_for(checkpoint, format)
    written = groups(checkpoint, rules, one.pack, one.prefix)
    if one.extra:
        tensors = one.extra()
        written.append(Group({name: tensor.to("meta") for name, tensor in tensors.items()}, lambda: tensors))
    ours = json.dumps({"config": dict(checkpoint.config), "facts": dict(checkpoint.facts)})
    metadata = {"format": "pt", OURS: ours, **(one.header(checkpoint, written) if one.header else {})}
    config = {**checkpoint.config, CLASS: checkpoint.model}
    if one.config:
        config["quantization_config"] = one.config(checkpoint)
    with replacing(path) as aside:
        if one.folder:
            aside.mkdir()
            write_folder(aside, written, metadata)
            (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        else:
            write_file(aside, written, metadata)
    return Path(path)


def convert(source: str | Path, target: str | Path, format: str, config: Source | None = None) -> Checkpoint:
    """Write the checkpoint at `source` as `format` to `target`, to the last bit the same values; returns what was read.

    Raises: as `read` and `write`.
    """
    if Path(source).resolve() == Path(target).resolve():
        raise InputError(f"A checkpoint can't be converted onto itself: name another place than {target}.")
    checkpoint = read(source, config)
    write(checkpoint, target, format)
    return checkpoint


def _rules_for(checkpoint: Checkpoint, format: str) -> tuple[Rule, ...] | None:
    rules = ORIGINAL_NAMES.get(checkpoint.model)
    if format == "bfl" and checkpoint.model not in BFL_MODELS:
        raise CheckpointError(f"The format bfl is for Flux and Flux2; {checkpoint.model} is neither.")
    return rules


def _there(path: str | Path) -> Path:
    place = Path(path)
    if not place.exists():
        raise InputError(f"There is no file or folder {place}.")
    if place.is_file() and place.suffix != ".safetensors":
        raise CheckpointError(f"{place} is no .safetensors file; fewstep opens no other kind, since they may run code.")
    return place


def _config_of(place: Path) -> dict[str, Any]:
    if place.is_file():
        return {}
    value = read_json(place / "config.json")
    if not isinstance(value, dict):
        raise CheckpointError(f"{place / 'config.json'} must be a JSON object.")
    return value


def _detect(stored: Stored, config: Mapping[str, Any]) -> str:
    if stored.path.is_dir():
        said = config.get("quantization_config")
        method = said.get("quant_method") if isinstance(said, Mapping) else None
        if method in ("modelopt", "torchao"):
            return str(method)
        raise CheckpointError(
            f"{stored.path / 'config.json'} must have a quantization_config of modelopt or torchao. Got {method!r}."
        )
    if comfy.METADATA in stored.metadata or any(name.endswith(".comfy_quant") for name in stored.where):
        return "comfy"
    if any(name.endswith(comfy.MARKER) for name in stored.where):
        return "comfy-scaled-fp8"
    if any(name.endswith(".weight_scale") for name in stored.where):
        return "bfl"
    raise CheckpointError(f"{stored.path} has no quantized layer of a format that fewstep knows: {', '.join(FORMATS)}.")


def _ours(stored: Stored) -> dict[str, Any]:
    try:
        value = json.loads(stored.metadata.get(OURS, "{}"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
