"""What a calibration was made on, so that it is never used on anything else."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from typing import Any

from torch import nn

from fewstep.models.fingerprint import fingerprint
from fewstep.models.model import Model

GUIDANCE = ("guidance_scale", "guidance_scale_2", "true_cfg_scale", "guidance_rescale")
SIZE = ("height", "width", "num_frames", "max_sequence_length")


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
        weights=known.weights if known else _weights(model.denoisers),
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


def _weights(denoisers: Mapping[str, nn.Module]) -> str:
    """One hash of them all."""
    found = {name: fingerprint(module) for name, module in denoisers.items()}
    return sha256(repr(found).encode()).hexdigest()[:16]


def _precision(denoisers: Mapping[str, nn.Module]) -> str:
    dtypes = {str(tensor.dtype).removeprefix("torch.") for m in denoisers.values() for tensor in m.parameters()}
    kinds = Counter(type(part).__name__ for module in denoisers.values() for part in module.modules())
    quantized = [f"{count} {kind}" for kind, count in sorted(kinds.items()) if "Int8" in kind or "Float8" in kind]
    subclasses = {type(t.data).__name__ for m in denoisers.values() for t in m.parameters()} - {"Tensor", "Parameter"}
    return " + ".join([*sorted(dtypes), *quantized, *sorted(subclasses)])
