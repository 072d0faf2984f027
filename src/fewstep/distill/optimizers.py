"""The optimizers of the loop, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import nn
from torch.optim import AdamW, Optimizer

from fewstep.errors import InputError, bad_value
from fewstep.muon import Muon

Build: TypeAlias = Callable[[nn.Module, float], list[Optimizer]]


def adamw(module: nn.Module, rate: float) -> list[Optimizer]:
    """AdamW (arXiv 1711.05101) on everything."""
    return [AdamW(_trained(module).values(), lr=rate, betas=(0.9, 0.99), weight_decay=0.0)]


def muon(module: nn.Module, rate: float) -> list[Optimizer]:
    """Muon (arXiv 2502.16982) on the matrices of repeated blocks, AdamW on the rest.

    Muon's step is scaled to the size of AdamW's (its section 2.2), so one rate serves both.

    Raises:
        InputError: the module has no matrix inside a list of blocks.
    """
    trained = _trained(module)
    matrices = {
        name: p for name, p in trained.items() if p.dim() == 2 and any(part.isdigit() for part in name.split("."))
    }
    if not matrices:
        raise InputError(
            f"Muon needs weight matrices in repeated blocks, and {type(module).__name__} has none: use adamw."
        )
    rest = [p for name, p in trained.items() if name not in matrices]
    first = Muon(matrices.values(), lr=rate, weight_decay=0.0, like_adamw=True)
    return [first, AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)] if rest else [first]


OPTIMIZERS: dict[str, Build] = {"adamw": adamw, "muon": muon}


def build(name: str, module: nn.Module, rate: float) -> list[Optimizer]:
    """The optimizers of that name over a module's trained parameters.

    Raises:
        InputError: an unknown name.
    """
    if name not in OPTIMIZERS:
        raise InputError(bad_value("optimizer", "the training loop", f"one of {', '.join(OPTIMIZERS)}", name))
    return OPTIMIZERS[name](module, rate)


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
