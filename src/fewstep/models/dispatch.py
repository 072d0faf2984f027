"""The attention of diffusers' modules sent through a function of ours, and nothing of diffusers patched.

An attention module of diffusers has a *processor*, whose call ends in `dispatch_attention_fn(query, key, value, …)`, or
in older ones in `F.scaled_dot_product_attention`: names that it finds in its own file. A processor of the same class,
with the same state, whose call finds another function under that name takes its place on one module; the other modules
of that class never notice.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

Attention = Callable[..., Tensor]
"""(query, key, value, attn_mask=None, …), (batch, tokens, heads, features) three times -> such a one."""

DISPATCH, PLAIN = "dispatch_attention_fn", "scaled_dot_product_attention"


def attentions(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that attend, by their paths: those with a processor."""
    return ((path, part) for path, part in module.named_modules() if callable(getattr(part, "processor", None)))


def attention_of(attention: nn.Module) -> Attention | None:
    """What a module's processor attends with; None where that is not found in its own call."""
    processor: Any = attention.processor
    kind = type(processor)
    if kind in _TWINS.values():
        found: Attention = processor._attend
        return found
    call = kind.__call__
    if not isinstance(call, FunctionType):
        return None
    if DISPATCH in call.__code__.co_names and DISPATCH in call.__globals__:
        own: Attention = dispatch_attention_fn
        return own
    if PLAIN in call.__code__.co_names and call.__globals__.get("F") is F:
        return plain_attention
    return None


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
) -> Tensor:
    """torch's own attention, in the order of axes of diffusers' dispatch."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask, **options).transpose(1, 2)


def redirect(attention: nn.Module, attend: Attention) -> Callable[[], None]:
    """Let a module whose `attention_of` is known attend through `attend`. Returns what undoes it.

    The two processors share their state: a backend that is set on one is set on the other.
    """
    plain: Any = attention.processor
    twin: Any = object.__new__(_twin(type(plain)))
    twin.__dict__ = plain.__dict__
    twin._attend = attend
    attention.processor = twin
    return partial(setattr, attention, "processor", plain)


_TWINS: dict[type, type] = {}  # a processor's class -> that of its twins


class _Call:
    """The `attend` of the processor that is called now."""

    attend: Attention


class _ThreadsCall(_Call, threading.local):
    """One for each thread."""


_NOW, _TRACED = _ThreadsCall(), _Call()  # torch.compile knows no thread's own objects; what it traces, one thread calls


def _now() -> _Call:
    return _TRACED if torch.compiler.is_compiling() else _NOW


def _twin(kind: type) -> type:
    """The class of all twins of processors of `kind`, or of the twins' own kind: compiled blocks that differ in nothing
    but their twin are one graph."""
    if kind in _TWINS.values():
        return kind
    if kind not in _TWINS:
        call: Any = kind.__call__
        found = {DISPATCH: _routed} if DISPATCH in call.__code__.co_names else {"F": _functional()}
        # With a __name__ among them torch.compile would look the globals up in the module of that name.
        names = {name: value for name, value in call.__globals__.items() if name != "__name__"}
        own = FunctionType(call.__code__, {**names, **found}, call.__name__, None, call.__closure__)
        own.__defaults__, own.__kwdefaults__ = call.__defaults__, call.__kwdefaults__

        @functools.wraps(call)
        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
            _now().attend = self._attend
            return own(self, *args, **kwargs)

        # A slot, beside the state that is shared.
        _TWINS[kind] = type(kind.__name__, (kind,), {"__call__": __call__, "__slots__": ("_attend",)})
    return _TWINS[kind]


def _routed(*args: Any, **kwargs: Any) -> Tensor:
    return _now().attend(*args, **kwargs)


def _functional() -> ModuleType:
    """torch.nn.functional with an attention that is routed."""

    def heads_first(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        tokens_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return _routed(*tokens_first, attn_mask=attn_mask, **options).transpose(1, 2)

    module = ModuleType(F.__name__)
    module.__dict__.update({**vars(F), PLAIN: heads_first})
    return module
