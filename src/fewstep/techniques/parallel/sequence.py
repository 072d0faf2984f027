"""Sequence parallelism: each process computes a part of a denoiser's tokens, and attention sees all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from fewstep.calibrate.run import measuring
from fewstep.calibrate.stack import first_of
from fewstep.errors import FewstepError
from fewstep.models.causal import causal_of
from fewstep.models.gateway import Slot
from fewstep.models.passes import Kept
from fewstep.models.sparse import NotSparse, Sparse
from fewstep.models.spread import Spread
from fewstep.models.streams import BlockList
from fewstep.techniques.parallel.exchange import Exchange
from fewstep.techniques.parallel.groups import same_enough


class SpreadDenoiser:
    """The blocks of one denoiser, spread over the processes of an exchange.

    The first call is made whole by each of them, to learn the model's structure, and then once more in parts: what
    these give must be what the whole gave.
    """

    def __init__(self, name: str, module: nn.Module, lists: list[BlockList], exchange: Exchange) -> None:
        self._name, self._exchange, self._causal = name, exchange, causal_of(module)
        self._sparse = Sparse(lists)
        self._blocks = [block for one in lists for block in one.modules]
        self._before = [block.__dict__.get("forward") for block in self._blocks]
        self._joint: dict[str, set[Slot]] = {}
        self.facts: dict[str, Any] = {"calls_whole": 0, "calls_spread": 0}

    def install(self) -> SpreadDenoiser:
        self._sparse.install()
        return self

    def remove(self) -> None:
        self._sparse.remove()

    def call(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The denoiser's output.

        Raises:
            FewstepError: its structure does not allow it.
        """
        run = partial(forward, *args, **kwargs)
        if measuring():  # a calibration is of the model, not of a part of it
            return run()
        if self._sparse.layouts:
            self.facts["calls_spread"] += 1
            return self._sparse.through(run, self._pass())
        self.facts["calls_whole"] += 1
        return self._learnt(run)

    @contextmanager
    def _bare(self) -> Iterator[None]:
        """The blocks without what was put around them since, like a cache, which is to see parts alone."""
        since = [block.__dict__.get("forward") for block in self._blocks]
        _put(self._blocks, self._before)
        try:
            yield
        finally:
            _put(self._blocks, since)

    def _pass(self) -> Spread:
        return Spread(self._sparse.layouts, self._joint, self._exchange)

    def _learnt(self, run: Callable[[], Any]) -> Any:
        if self._causal is None:
            return self._checked(run)
        with self._causal.unmasked():  # its mask and its window are of all tokens, and no part of the structure
            self._checked(run)
        return self._sparse.through(run, self._pass())

    def _checked(self, run: Callable[[], Any]) -> Any:
        kept: Kept = {}
        try:
            with self._bare():
                whole = self._sparse.run(run, kept)
        except NotSparse as error:
            raise FewstepError(f"The tokens of the {self._name} can't be spread over processes: {error}") from error
        tokens = self._sparse.tokens
        self._joint = {path: set() for path in self._sparse.layouts}
        for (path, call), (keys, _) in kept.items():
            block, within = path.split(":")
            if keys.shape[1] > tokens:
                self._joint[block.rpartition(".")[0]].add((within, call))
        kept.clear()
        try:
            parts = self._sparse.through(run, self._pass())
        except (RuntimeError, ValueError, IndexError) as error:
            raise FewstepError(
                f"The {self._name} does not run on a part of its tokens, so they can't be spread: {error}"
            ) from error
        if not same_enough(first_of(whole), first_of(parts)):
            raise FewstepError(
                f"The {self._name} gives something else in parts than whole, so its tokens can't be spread."
            )
        return parts


def _put(blocks: Sequence[nn.Module], forwards: Sequence[Any]) -> None:
    """These in the place of the blocks' own forwards; None for the class's."""
    for block, forward in zip(blocks, forwards, strict=True):
        block.__dict__.pop("forward", None)
        if forward is not None:
            block.__dict__["forward"] = forward
