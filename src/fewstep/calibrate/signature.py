"""What a calibration was made on, so that it is never used on anything else."""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.models.model import Model

GUIDANCE = ("guidance_scale", "guidance_scale_2", "true_cfg_scale", "guidance_rescale")
SIZE = ("height", "width", "num_frames", "max_sequence_length")
SAMPLES = 64  # of each tensor go into the hash: enough to tell models apart, quick on billions of weights


@dataclass(frozen=True)
class Signature:
    """The model, its precision, and the call's guidance and size, as text. The number of steps is not in it."""

    weights: str
    precision: str
    guidance: str
    size: str

    def differences(self, other: Signature) -> list[str]:
        """What is not as in `other`, like *size (height=64 instead of height=32)*."""
        here, there = asdict(self), asdict(other)
        # Another precision changes the weights too: naming one is enough.
        parts = [f.name for f in fields(self) if f.name != "weights" or self.precision == other.precision]
        return [f"{name} ({here[name]} instead of {there[name]})" for name in parts if here[name] != there[name]]


def signature(model: Model, call: Mapping[str, Any], known: Signature | None = None) -> Signature:
    """The signature of the pipeline as it is now, called with these keyword arguments.

    `known` is an earlier one of this pipeline with these weights, which are then not read again.
    """
    values = effective_call(model, call)
    guided = {name: values[name] for name in GUIDANCE if name in values}
    negative = any(values.get(name) is not None for name in ("negative_prompt", "negative_prompt_embeds"))
    return Signature(
        weights=known.weights if known else _weights_hash(model.denoisers),
        precision=known.precision if known else _precision(model.denoisers),
        guidance=_text({**guided, "negative_prompt": negative}),
        size=_text({name: values[name] for name in SIZE if name in values}),
    )


def effective_call(model: Model, call: Mapping[str, Any]) -> dict[str, Any]:
    """The call's arguments with the defaults of the pipeline and its manifest filled in."""
    parameters = inspect.signature(model.pipe.__call__).parameters.values()
    own = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return {**own, **(model.manifest.call if model.manifest else {}), **call}


def _text(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _weights_hash(denoisers: Mapping[str, nn.Module]) -> str:
    digest = hashlib.sha256()
    for component, module in denoisers.items():
        for name, tensor in module.state_dict().items():
            for part in plain_tensors(tensor):
                digest.update(f"{component}.{name} {tuple(part.shape)} {part.dtype}".encode())
                digest.update(_sample(part))
    return digest.hexdigest()[:16]


def _sample(tensor: Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    places = torch.linspace(0, max(flat.numel() - 1, 0), min(SAMPLES, flat.numel())).long()
    return flat[places.to(flat.device)].double().cpu().numpy().tobytes()


def _precision(denoisers: Mapping[str, nn.Module]) -> str:
    dtypes = {str(tensor.dtype).removeprefix("torch.") for m in denoisers.values() for tensor in m.parameters()}
    kinds = Counter(type(part).__name__ for module in denoisers.values() for part in module.modules())
    quantized = [f"{count} {kind}" for kind, count in sorted(kinds.items()) if "Int8" in kind or "Float8" in kind]
    subclasses = {type(t.data).__name__ for m in denoisers.values() for t in m.parameters()} - {"Tensor", "Parameter"}
    return " + ".join([*sorted(dtypes), *quantized, *sorted(subclasses)])


def plain_tensors(tensor: Tensor) -> list[Tensor]:
    """The tensor itself, or, of one made of others (a quantized weight), those."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in plain_tensors(getattr(tensor, name))]
