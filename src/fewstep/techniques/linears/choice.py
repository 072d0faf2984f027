"""Layers chosen by measurement: the calibration run, the budget, and the choice written down layer by layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from fewstep.calibrate.recorded import Call, record
from fewstep.calibrate.sensitivity import Budget, Candidate, Choice, Sensitivity, choose, expected_error, measure
from fewstep.calibrate.signature import signature
from fewstep.errors import InputError
from fewstep.models.model import Model
from fewstep.techniques.linears.kernels import stored_bytes
from fewstep.techniques.linears.layers import Layer, hints_of

Convert = Callable[[Layer], nn.Module]


def calls_of(prompts: Sequence[str]) -> list[dict[str, Any]]:
    """The calls of a calibration run, each with noise of its own."""
    return [{"prompt": text, "generator": torch.Generator().manual_seed(i)} for i, text in enumerate(prompts)]


def takes_prompts(model: Model) -> bool:
    return "prompt" in inspect.signature(model.pipe.__call__).parameters


def sensitivity(
    model: Model, layers: Sequence[Layer], convert: Convert, scheme: str, calls: Sequence[Mapping[str, Any]],
    recorded: Sequence[Call] | None = None,
) -> tuple[Sensitivity, dict[str, nn.Module]]:  # fmt: skip
    """What each layer of the denoisers does alone, and the quantized layers that were made for it, by name.

    Args:
        calls: keyword arguments of the pipeline's calls, made unless `recorded` holds what they left.
    """
    recorded = record(model, *calls) if recorded is None else recorded
    candidates = []
    for layer in layers:
        made = convert(layer)
        candidates.append(Candidate(layer.component, layer.path, made, stored_bytes(layer.linear) - stored_bytes(made)))
    effects, together = measure(model, candidates, recorded)
    facts = {"calls": len(recorded), "prompts": [str(call.get("prompt")) for call in calls]}
    return (
        Sensitivity(signature(model, calls[0]), scheme, effects, together, facts),
        {candidate.name: candidate.quantized for candidate in candidates},
    )


@dataclass(frozen=True)
class Chosen:
    """Layers after the budget has spoken, and what is said of it in the facts."""

    layers: list[Layer]
    facts: dict[str, Any]


def within(model: Model, layers: Sequence[Layer], found: Sensitivity, budget: Budget) -> Chosen:
    """The layers with those that the budget keeps precise marked so.

    Raises:
        InputError: the budget keeps every layer precise, or can't be reached.
    """
    hints = {name: hints_of(model, name) for name in model.denoisers}
    size = sum(p.nbytes for module in model.denoisers.values() for p in module.parameters())
    decided = choose(found, budget, size, lambda layer: _hinted(hints, layer))
    choices = {choice.layer: choice for choice in decided}
    if not any(choice.quantized for choice in decided):
        least = min((c.error for c in decided), default=0.0)
        raise InputError(f"The 'budget' of Quantize leaves no layer to quantize: the least of them costs {least:.2g}.")
    marked = [_marked(layer, choices) if layer.component in model.denoisers else layer for layer in layers]
    expected = expected_error(found, [layer.name for layer in marked if layer.skipped is None])
    return Chosen(
        marked,
        {
            "expected_error": expected,
            "choice": [asdict(choice) for choice in decided],
            "keep": [layer.name for layer in marked if layer.skipped and isinstance(layer.module, nn.Linear)],
        },
    )


def _hinted(hints: Mapping[str, Callable[[str], str | None]], layer: str) -> bool:
    component, _, path = layer.partition(".")
    return hints[component](path) is not None


def _marked(layer: Layer, choices: Mapping[str, Choice]) -> Layer:
    if layer.skipped is not None:
        return layer
    choice = choices.get(layer.name)
    if choice is None:
        return replace(layer, skipped="not measured")
    return layer if choice.quantized else replace(layer, skipped="kept by the budget")
