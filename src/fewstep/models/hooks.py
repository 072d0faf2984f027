"""Forward wrapping on one module instance, exactly reversible.

A hook is an instance attribute `forward` over the class's own method, so other instances of the class never notice.
Hooks on one module nest, the last one outermost, and may be removed in any order: `remove` closes the gap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from fewstep.errors import InputError

Wrapper = Callable[..., Any]  # fn(forward, *args, **kwargs) -> the output of the module


class Hook:
    """`fn(forward, *args, **kwargs)` in the place of `module.forward`; `forward` is what was there before.

    A deep copy of a hooked module still calls the original (functions are not copied): copy before hooking.
    """

    def __init__(self, module: nn.Module, fn: Wrapper) -> None:
        self.module, self.fn = module, fn
        self._below: Callable[..., Any] | None = None
        self._shadowed = False  # an instance-level forward, someone else's or another hook's, was there before
        self._installed: Callable[..., Any] | None = None

    @property
    def installed(self) -> bool:
        return self._installed is not None

    def install(self) -> Hook:
        """Put the hook outermost on the module. A second call changes nothing."""
        if self._installed is not None:
            return self
        self._shadowed = "forward" in self.module.__dict__
        self._below = self.module.forward

        @functools.wraps(self._below)  # keeps the signature, which pipelines inspect
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self.fn(self._below, *args, **kwargs)

        forward._fewstep_hook = self  # type: ignore[attr-defined]
        self._installed = forward
        self.module.__dict__["forward"] = forward
        return self

    def remove(self) -> None:
        """Take the hook off; `module.forward` is then what it would be had the hook never been there.

        Raises:
            InputError: other code wrapped the forward after us and still holds our function.
        """
        if self._installed is None:
            return
        above = self._hook_above()
        if above is not None:
            above._below, above._shadowed = self._below, self._shadowed
        elif self._shadowed:
            self.module.__dict__["forward"] = self._below
        else:
            del self.module.__dict__["forward"]
        self._installed = self._below = None

    def _hook_above(self) -> Hook | None:
        """The hook that calls this one, None when this is the outermost."""
        above: Hook | None = None
        forward = self.module.__dict__.get("forward")
        while forward is not self._installed:
            above = getattr(forward, "_fewstep_hook", None)
            if above is None:
                raise InputError(
                    f"The forward of {type(self.module).__name__} was wrapped by other code after fewstep: "
                    "undo that first."
                )
            forward = above._below
        return above


class Hooks:
    """Hooks that are put on together and taken off together, the last one first."""

    def __init__(self, hooks: Iterable[Hook]) -> None:
        self._hooks = tuple(hooks)

    def install(self) -> Hooks:
        for hook in self._hooks:
            hook.install()
        return self

    def remove(self) -> None:
        for hook in reversed(self._hooks):
            hook.remove()


@contextmanager
def wrapped(module: nn.Module, fn: Wrapper) -> Iterator[Hook]:
    """`fn` around `module.forward` inside the block, and the module as it was after it, whatever happens inside."""
    hook = Hook(module, fn).install()
    try:
        yield hook
    finally:
        hook.remove()
