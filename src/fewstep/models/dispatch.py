"""The attention of diffusers' modules sent through a function of ours, and nothing of diffusers patched.

An attention module of diffusers has a *processor*, whose call ends in `dispatch_attention_fn(query, key, value, …)`, a
name it finds in its own file. A processor of the same class, with the same state, whose call finds another function
under that name takes its place on one module; the other modules of that class never notice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType
from typing import Any

from torch import Tensor, nn

Attend = Callable[..., Tensor]  # like dispatch_attention_fn: (batch, tokens, heads, features), three times -> one
DISPATCH = "dispatch_attention_fn"


def attentions(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that attend, by their paths: those with a processor."""
    return ((path, part) for path, part in module.named_modules() if callable(getattr(part, "processor", None)))


def dispatches(attention: nn.Module) -> bool:
    """Whether its processor's own call goes through diffusers' dispatch, as all newer ones do."""
    call = type(attention.processor).__call__
    return isinstance(call, FunctionType) and DISPATCH in call.__code__.co_names and DISPATCH in call.__globals__


def redirect(attention: nn.Module, attend: Attend) -> Callable[[], None]:
    """Let a module attend through `attend`, which is called like `dispatch_attention_fn`. Returns what undoes it.

    The two processors share their state: a backend that is set on one is set on the other.
    """
    plain: Any = attention.processor
    kind = type(plain)
    call = kind.__call__
    own = FunctionType(call.__code__, {**call.__globals__, DISPATCH: attend}, call.__name__, None, call.__closure__)
    own.__defaults__, own.__kwdefaults__ = call.__defaults__, call.__kwdefaults__
    twin: Any = object.__new__(type(kind.__name__, (kind,), {"__call__": functools.update_wrapper(own, call)}))
    twin.__dict__ = plain.__dict__
    attention.processor = twin
    return partial(setattr, attention, "processor", plain)
