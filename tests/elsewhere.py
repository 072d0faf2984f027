"""A device that is not there: computes on the CPU, and refuses what a GPU refuses.

    with elsewhere() as device:
        module.to(device)(x.to(device))

A tensor there holds one of the CPU. Operations that mix both places raise, but for numbers (tensors without axes),
copies, and indices, as with CUDA. So code that was only ever run on a CPU shows where it forgot a `.to(device)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

NAME = "elsewhere"
aten = torch.ops.aten
LIBRARY = torch.library.Library("aten", "IMPL", "PrivateUse1")
CROSSES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default, aten.set_.source_Tensor}
TAKES_INDICES = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class Elsewhere(Tensor):
    """A tensor of the device: `held` is where its numbers are."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        made: Elsewhere = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
            requires_grad=False,
        )
        made.held = held.detach()
        return made

    def __repr__(self) -> str:
        return f"Elsewhere({self.held!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Elsewhere:
        if id(self) not in memo:
            made = Elsewhere(self.held.clone()).requires_grad_(self.requires_grad)
            if isinstance(self, nn.Parameter):
                made._is_param = True
            memo[id(self)] = made
        return memo[id(self)]

    def tolist(self) -> Any:
        return self.held.tolist()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})


def leaves(value: Any) -> Iterator[Any]:
    """What is in lists, tuples and dictionaries. (torch's own took a third of a run.)"""
    if isinstance(value, tuple | list):
        for one in value:
            yield from leaves(one)
    elif isinstance(value, dict):
        yield from leaves(tuple(value.values()))
    else:
        yield value


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """The same with each leaf changed."""
    if isinstance(value, tuple | list):
        return type(value)([mapped(change, one) for one in value])
    if isinstance(value, dict):
        return {name: mapped(change, one) for name, one in value.items()}
    return change(value)


def dispatched(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    values = list(leaves((args, kwargs)))
    there = [one for one in values if isinstance(one, Elsewhere)]
    target = kwargs.get("device")
    if func not in CROSSES and there:
        given = list(leaves((args[:1], kwargs))) if func in TAKES_INDICES else values
        strangers = [one for one in given if isinstance(one, Tensor) and not isinstance(one, Elsewhere) and one.dim()]
        if strangers and any(isinstance(one, Elsewhere) for one in given):
            raise RuntimeError(f"{func}: tensors of {NAME} and of the CPU, {tuple(strangers[0].shape)}, together")
        if func in TAKES_INDICES and not isinstance(args[0], Elsewhere):
            raise RuntimeError(f"{func}: indices of {NAME} into a tensor of the CPU")
    result_there = bool(there) if target is None else torch.device(target).type == NAME
    if target is not None and result_there:
        kwargs = {**kwargs, "device": torch.device("cpu")}
        draws = kwargs.get("generator")
        if draws is not None and draws.device.type == "cpu":
            raise RuntimeError(f"{func}: a generator of the CPU for a tensor of {NAME}")
    plain_args, plain_kwargs = mapped(lambda one: one.held if isinstance(one, Elsewhere) else one, (args, kwargs))
    out = func(*plain_args, **plain_kwargs)
    if func is aten.copy_.default:
        return args[0]
    if not result_there:
        return out
    if target is not None and func is aten._to_copy.default and out is plain_args[0]:
        out = out.clone()
    wrapped = mapped(lambda one: Elsewhere(one) if isinstance(one, Tensor) else one, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if there else wrapped


class _Factories(TorchDispatchMode):
    """Tensors made there from nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})


class _Backend(backend_registration._DummyBackendModule):
    """What torch asks of a device's module, `torch.cuda` for one."""

    def get_rng_state(self, device: Any = 0) -> Tensor:
        return torch.zeros(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None: ...

    def manual_seed_all(self, seed: int) -> None: ...

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def _empty(packet: Any, overload: str, *args: Any, **kwargs: Any) -> Tensor:
    return Elsewhere(getattr(packet, overload)(*args, **{**kwargs, "device": torch.device("cpu")}))


def _copy(source: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
    held, into = (one.held if isinstance(one, Elsewhere) else one for one in (source, to))
    into.copy_(held)
    return to


@cache
def _registered() -> torch.device:
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Backend())
    for name in ("empty_strided", "empty.memory_format"):  # `torch.tensor` asks for these behind a mode's back
        LIBRARY.impl(name, partial(_empty, getattr(aten, name.partition(".")[0]), name.partition(".")[2] or "default"))
    LIBRARY.impl("_copy_from", _copy)
    return torch.device(NAME, 0)


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    device = _registered()
    with _Factories():
        yield device
