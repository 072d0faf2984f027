"""Faster and smaller passes: bfloat16 autocast, compilation, checkpointing and attention that can be taken back."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
import torch._dynamo
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import nn

from fewstep.compilation import sound_cache
from fewstep.errors import InputError, MachineError, bad_value
from fewstep.machine import Machine
from fewstep.models.blocks import find_blocks

VERSIONS = 64

Precision = Literal["fp32", "bf16"]


def check_precision(precision: str) -> None:
    """Raises InputError where it is not a `Precision`."""
    if precision not in get_args(Precision):
        raise InputError(bad_value("precision", "training", f"one of {', '.join(get_args(Precision))}", precision))


def warn_if_emulated(precision: Precision) -> None:
    """Warns where "bf16" is slower than "fp32", as this machine has no arithmetic for it."""
    if precision == "bf16" and (missing := Machine.detect().missing("bf16")):
        warnings.warn(
            f"precision: bf16 is emulated here, slower than fp32, which is the default. {missing}", stacklevel=3
        )


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Matrix products in bfloat16 inside, or nothing for "fp32"."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def compiled(modules: Iterable[nn.Module], wanted: bool = True) -> Iterator[None]:
    """Calls of these modules go through torch.compile inside the block: of their repeated blocks, which share a graph
    for each kind, and of those without any as a whole.

    Raises:
        MachineError: this machine can't compile, or torch's cache is damaged.
    """
    if not wanted:
        yield
        return
    why_not = Machine.detect().missing("compile")
    if why_not is not None:
        raise MachineError(why_not)
    parts = [part for module in modules for part in _parts(module) if part._compiled_call_impl is None]
    for part in parts:
        part.compile()
    try:
        # Students and teachers are of one class, whose versions are counted together; past the limit they run slow. A
        # training has few shapes: a graph for each is found sooner, and is faster, than one for all.
        with torch._dynamo.config.patch(recompile_limit=VERSIONS, automatic_dynamic_shapes=False), sound_cache():
            yield
    finally:
        for part in parts:
            part._compiled_call_impl = None


def _parts(module: nn.Module) -> list[nn.Module]:
    """What of it is compiled, which takes minutes where it is a whole network of many blocks."""
    if module._compiled_call_impl is not None:
        return []
    return [block.module for block in find_blocks(module)] or [module]


@contextmanager
def uncompiled(module: nn.Module, around: Iterable[nn.Module] | None = None) -> Iterator[None]:
    """Calls of the module run plainly inside the block: for a trace, whose recorder must not be compiled in. With
    `around`, only those parts do that are one of these modules or hold one."""
    parts = [part for part in module.modules() if part._compiled_call_impl is not None]
    if around is not None:
        seen = set(around)
        parts = [part for part in parts if not seen.isdisjoint(part.modules())]
    kept = {part: part._compiled_call_impl for part in parts}
    for part in kept:
        part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, call in kept.items():
            part._compiled_call_impl = call


@contextmanager
def checkpointed(modules: Mapping[str, nn.Module], wanted: bool = True) -> Iterator[None]:
    """Inside the block these modules keep no activations within their blocks, and compute them again going backwards.

    Modules without repeated blocks, as heads of a discriminator, have nothing to gain and stay as they are.

    Raises:
        InputError: a module has repeated blocks and can't do it, or none of them has any.
    """
    if not wanted:
        yield
        return
    able = {name: _able(module) for name, module in modules.items() if _able(module) or find_blocks(module)}
    if unable := [name for name in able or modules if not able.get(name)]:
        kind = type(modules[unable[0]]).__name__
        raise InputError(
            f"The {unable[0]!r} of this method, {kind}, has no enable_gradient_checkpointing: turn 'checkpointing' off."
        )
    parts = [part for found in able.values() for part in found if not part.is_gradient_checkpointing]
    for part in parts:
        part.enable_gradient_checkpointing()
    try:
        yield
    finally:
        for part in parts:
            part.disable_gradient_checkpointing()


@contextmanager
def trained_attention(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Attention with a backward pass that is right and quick, inside the block (both found in docs/log.md).

    On a CPU, that of diffusers' modules is two products and a softmax: the fused one's backward is slow. Attention with
    a backend of its own keeps it. On a GPU it is not cuDNN's, whose backward in bfloat16 gave NaN, or read memory that
    is not its own.
    """
    every = [part for module in modules for part in module.modules()] if device.type == "cpu" else []
    found = {id(one): one for part in every if (one := getattr(part, "processor", None)) is not None}
    fused = [one for one in found.values() if getattr(one, "_attention_backend", "none to set") is None]
    for processor in fused:
        processor._attention_backend = AttentionBackendName._NATIVE_MATH
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(cudnn and device.type != "cuda")
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        for processor in fused:
            processor._attention_backend = None


def checkpoint_blocks(module: nn.Module) -> None:
    """From now on it keeps no activations within its blocks.

    Raises:
        InputError: it can't.
    """
    parts = _able(module)
    if not parts:
        raise InputError(f"{type(module).__name__} has no enable_gradient_checkpointing: turn 'checkpointing' off.")
    for part in parts:
        part.enable_gradient_checkpointing()


def _able(module: nn.Module) -> list[Any]:
    """The parts that can: a network of diffusers, or those inside of a wrapper. The network of an adapter is told
    before there are roles (`lora.Shared`), as it must be computed again in the right one."""
    if (network := getattr(module, "shared_network", None)) is not None:
        return [part for part in network.modules() if getattr(part, "is_gradient_checkpointing", False)]
    return [part for part in module.modules() if getattr(part, "_supports_gradient_checkpointing", False)]
