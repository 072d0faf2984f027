"""The optimizers of the loop, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn
from torch.optim import AdamW, Optimizer

from fewstep.errors import InputError, bad_value
from fewstep.muon import Muon


@dataclass(frozen=True)
class Options:
    """`rate`: the loop sets it anew at each step. `betas`: of AdamW. `weight_decay`: decoupled, per unit of rate."""

    rate: float
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0


Build: TypeAlias = Callable[[nn.Module, Options], list[Optimizer]]


def adamw(module: nn.Module, options: Options) -> list[Optimizer]:
    """AdamW (arXiv 1711.05101) on everything."""
    return [_adamw(list(_trained(module).values()), options)]


def muon(module: nn.Module, options: Options) -> list[Optimizer]:
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
    first = Muon(matrices.values(), lr=options.rate, weight_decay=options.weight_decay, like_adamw=True)
    return [first, _adamw(rest, options)] if rest else [first]


OPTIMIZERS: dict[str, Build] = {"adamw": adamw, "muon": muon}


def build(name: str, module: nn.Module, options: Options) -> list[Optimizer]:
    """The optimizers of that name over a module's trained parameters.

    Raises:
        InputError: an unknown name.
    """
    if name not in OPTIMIZERS:
        raise InputError(bad_value("optimizer", "the training loop", f"one of {', '.join(OPTIMIZERS)}", name))
    return OPTIMIZERS[name](module, options)


def _adamw(parameters: list[nn.Parameter], options: Options) -> Optimizer:
    return AdamW(parameters, lr=options.rate, betas=options.betas, weight_decay=options.weight_decay)


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
