"""What a diffusers model must hold, from its class name and config alone: names, shapes, linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fewstep.errors import CheckpointError, InputError
from fewstep.files import read_json

CLASS = "_class_name"


@dataclass(frozen=True)
class Expected:
    """A model without numbers.

    Attributes:
        model: name of its diffusers class.
        config: as in `config.json`.
        shapes: name of a tensor -> its shape.
        linears: paths of the linear layers.
        floating: names of the tensors that hold no integers.
    """

    model: str
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    linears: frozenset[str]
    floating: frozenset[str]


def empty(config: Mapping[str, Any]) -> nn.Module:
    """The model of a config, its weights on the meta device: it takes no memory whatever its size.

    Tables that are no weights, such as those of rotary embeddings, have their numbers.

    Raises:
        InputError: diffusers has no such class, or the config is not one of it.
    """
    import diffusers
    from accelerate import init_empty_weights

    name = config.get(CLASS)
    kind: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
        raise InputError(f"The {CLASS!r} of the model's config must be a model class of diffusers. Got {name!r}.")
    made: Any = kind
    try:
        with init_empty_weights(include_buffers=False):
            model: nn.Module = made.from_config(without_quantization(config))
    except Exception as error:  # whatever a constructor says to numbers that don't fit
        raise InputError(f"The config is no whole {name}: {error}.") from error
    return model


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "quantization_config"}


def expected(config: Mapping[str, Any]) -> Expected:
    """What the model of a config must have.

    Raises: as `empty`.
    """
    model = empty(config)
    linears = frozenset(path for path, part in model.named_modules() if isinstance(part, nn.Linear))
    state = model.state_dict()
    floating = frozenset(key for key, tensor in state.items() if tensor.is_floating_point())
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    return Expected(str(config[CLASS]), without_quantization(config), shapes, linears, floating)


def read_config(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """A model's config from itself, its file, its folder, or the folder of a pipeline that has it as `transformer`.

    Raises:
        InputError: there is none, or it is not JSON.
    """
    if isinstance(source, Mapping):
        return dict(source)
    path = Path(source)
    for file in (path / "config.json", path / "transformer" / "config.json") if path.is_dir() else (path,):
        if file.exists():
            value = read_json(file)
            if isinstance(value, dict) and CLASS in value:
                return value
    raise InputError(f"{path} must be a diffusers model's folder or its config.json.")


def broken(path: Path, layer: str, what: str) -> CheckpointError:
    """The one message shape of a bad layer."""
    return CheckpointError(f"{path}: the layer {layer} is broken: {what}.")
