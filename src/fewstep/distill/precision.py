"""Fast forward passes: bfloat16 autocast, and compilation that can be taken back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, get_args

import torch
import torch._dynamo
from torch import nn

from fewstep.errors import InputError, MachineError, bad_value
from fewstep.machine import Machine

VERSIONS = 64

Precision = Literal["fp32", "bf16"]


def check_precision(precision: str) -> None:
    """Raises InputError where it is not a `Precision`."""
    if precision not in get_args(Precision):
        raise InputError(bad_value("precision", "training", f"one of {', '.join(get_args(Precision))}", precision))


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Matrix products in bfloat16 inside, or nothing for "fp32"."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def compiled(modules: Iterable[nn.Module], wanted: bool = True) -> Iterator[None]:
    """Calls of these modules go through torch.compile inside the block.

    Raises:
        MachineError: this machine can't compile.
    """
    if not wanted:
        yield
        return
    why_not = Machine.detect().missing("compile")
    if why_not is not None:
        raise MachineError(why_not)
    modules = [module for module in modules if module._compiled_call_impl is None]
    for module in modules:
        module.compile()
    try:
        # Students and teachers are of one class, whose versions are counted together; past the limit they run slow.
        with torch._dynamo.config.patch(recompile_limit=VERSIONS):
            yield
    finally:
        for module in modules:
            module._compiled_call_impl = None


@contextmanager
def uncompiled(module: nn.Module) -> Iterator[None]:
    """Calls of the module run plainly inside the block: for a trace, whose recorder must not be compiled in."""
    kept = module._compiled_call_impl
    module._compiled_call_impl = None
    try:
        yield
    finally:
        module._compiled_call_impl = kept
