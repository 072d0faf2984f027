"""A transformer's blocks on some of its tokens: the others stay what they were, as keys and values for the rest.

Every list of blocks gets the hidden stream of the active tokens alone and gives it back among the tokens that went in,
so that nothing between and around the lists knows of it. Text tokens are always active. In attention the active tokens
ask all tokens: of the others the keys and values of their last run are kept (`Kept`).

What this needs to know of a model is measured on it, once: which rows of a joint sequence are the picture's, and that
nothing but attention lets one token see another. A model that differs is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.models.dispatch import attentions, redirect
from fewstep.models.gateway import Gateway, Pass, Slot
from fewstep.models.hooks import wrapped
from fewstep.models.passes import BlockPass, Dense, Kept, Layout, Record, Rows, Some, take, token_axis
from fewstep.models.streams import BlockList, arguments, hidden_name, takes_apart, unpack

ALIKE = 1e-2  # of the largest number: differences below it may be the rounding of a quantized layer


class NotSparse(FewstepError):
    """This model's blocks can't run on some of their tokens."""


class Sparse:
    """The blocks of one denoiser, which run on some tokens where `run` is told so."""

    def __init__(self, lists: list[BlockList], layouts: dict[str, Layout] | None = None) -> None:
        self._lists = lists
        self._redirected: list[Callable[[], None]] = []
        self._gateways: list[Gateway] = []
        self.doing: Pass | None = None
        self.layouts = layouts or {}  # of each list, by its path; learned where nobody knows them
        self.tokens = 0  # of the picture, when that was learned
        self.alike = False  # the samples of a batch share what is given for each token: they need the same rows

    def install(self) -> Sparse:
        for one, index, block in self._blocks() if not self._redirected else ():
            for path, part in attentions(block):
                gateway = Gateway(self, f"{one.path}.{index}:{path}", part)
                self._gateways.append(gateway)
                self._redirected.append(redirect(part, gateway))
        return self

    def remove(self) -> None:
        while self._redirected:
            self._redirected.pop()()
        self._gateways.clear()

    def run(self, forward: Callable[[], Any], kept: Kept, rows: Rows | None = None) -> Any:
        """What `forward`, a call of the denoiser, returns.

        Args:
            kept: filled, and used where not all is computed.
            rows: what to compute, on the model's device; the output holds nothing of use for other tokens. None: all.

        Raises:
            NotSparse: the model's structure does not allow it. Found out in the first call.
        """
        if rows is None:
            with self._doing(Dense(kept, self.layouts)) if self.layouts else self._learning(kept):
                return forward()
        return self.through(forward, Some(kept, self.layouts, rows))

    def through(self, forward: Callable[[], Any], some: BlockPass) -> Any:
        """What `forward` returns with its blocks, and the attention in them, done by `some`."""
        with ExitStack() as gates, self._doing(some):
            for one, index, block in self._blocks():
                gates.enter_context(wrapped(block, partial(some.block, one, index)))
            return forward()

    def _blocks(self) -> Iterator[tuple[BlockList, int, nn.Module]]:
        return ((one, index, block) for one in self._lists for index, block in enumerate(one.modules))

    @contextmanager
    def _doing(self, what: Pass) -> Iterator[None]:
        before, self.doing = self.doing, what
        try:
            yield
        finally:
            self.doing = before

    @contextmanager
    def _learning(self, kept: Kept) -> Iterator[None]:
        """A dense call before each list of which its layout is found."""
        found: dict[str, Layout] = {}
        left: list[Tensor] = []  # what the last list gave

        def first(one: BlockList, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            given = arguments(one.modules[0], args, kwargs)
            name = hidden_name(given)
            if not left:
                self.tokens = given[name].shape[1]
            at_start = stands_first(given[name], left[-1], self.tokens) if left else True
            found[one.path] = self._probe(one, name, given, at_start)
            return forward(*args, **kwargs)

        def last(one: BlockList, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            if not takes_apart(output, one.outputs[-1]):
                raise NotSparse(f"families.py does not say what a {type(one.modules[-1]).__name__} returns.")
            hidden = unpack(output, one.outputs[-1])["hidden"]
            left.append(hidden[:, : self.tokens] if found[one.path].hidden_first else hidden[:, -self.tokens :])
            return output

        with ExitStack() as gates, self._doing(Dense(kept, found)):
            for one in self._lists:
                gates.enter_context(wrapped(one.modules[0], partial(first, one)))
                gates.enter_context(wrapped(one.modules[-1], partial(last, one)))
            yield
        self.layouts = found

    def _probe(self, one: BlockList, name: str, given: dict[str, Any], at_start: bool) -> Layout:
        """Run a list's first block twice, one token changed the second time and attention as it was: the keys that
        change are that token's, and nothing else may change but its own output."""
        block, hidden = one.modules[0], given[name]
        kind, run = type(block).__name__, partial(type(block).forward, block)
        row = 0 if at_start else hidden.shape[1] - self.tokens
        changed = hidden.clone()
        changed[:, row] = torch.linspace(-1, 1, hidden.shape[2]).to(hidden)
        plain, other = Record(), Record()
        with self._doing(plain):
            before = run(**given)
        with self._doing(other):
            other.answers = plain.outputs
            after = run(**{**given, name: changed})
        if rows_apart(*(unpack(output, one.outputs[0])["hidden"] for output in (before, after))) not in ([], [row]):
            raise NotSparse(f"In a {kind} tokens see each other outside of attention too.")
        first: dict[Slot, bool] = {}
        for (path, call), (keys, _) in plain.kept.items():
            apart, text = rows_apart(keys, other.kept[path, call][0]), keys.shape[1] - self.tokens
            if apart not in ([], [0], [text]):
                raise NotSparse(
                    f"The keys of a {kind} depend on other tokens; quantization with one scale for all does that."
                )
            if apart:
                first[path.partition(":")[2], call] = apart == [0]
        if not first:
            raise NotSparse(f"No attention of a {kind} has the picture's tokens as its keys.")
        lengths = {self.tokens, hidden.shape[1], *(keys.shape[1] for keys, _ in plain.kept.values())}
        self.alike = self.alike or any(_shared(value, lengths) for value in given.values())
        return self._tried(one, given, Layout(at_start, first), plain, before)

    def _tried(self, one: BlockList, given: dict[str, Any], layout: Layout, plain: Record, before: Any) -> Layout:
        """The layout, when every other token alone comes out of the block as it did with all."""
        block, places = one.modules[0], one.outputs[0]
        active = torch.arange(0, self.tokens, 2, device=given[hidden_name(given)].device)[None]
        copies = {slot: (key.clone(), value.clone()) for slot, (key, value) in plain.kept.items()}
        some = Some(copies, {one.path: layout}, Rows(active, self.tokens))
        kind = type(block).__name__
        try:
            with self._doing(some):
                output = some.block(one, 0, partial(type(block).forward, block), **given)
        except (RuntimeError, ValueError, IndexError) as error:
            raise NotSparse(f"A {kind} does not run on some of its tokens: {error}") from error
        rows = some.rows.of(given[hidden_name(given)].shape[1], layout.hidden_first)
        whole, part = (unpack(out, places)["hidden"] for out in (before, output))
        part = take(part, rows) if len(one.modules) == 1 else part
        if rows_apart(take(whole, rows), part):
            raise NotSparse(f"A {kind} gives something else for some of its tokens than for all.")
        return layout


def _shared(value: Any, lengths: Container[int]) -> bool:
    """Whether an argument of a block has something for each token that is the same for all samples of a batch."""
    if isinstance(value, list | tuple):
        return any(_shared(part, lengths) for part in value)
    return isinstance(value, Tensor) and token_axis(value, lengths) == 0


def stands_first(hidden: Tensor, picture: Tensor, tokens: int) -> bool:
    """Whether the picture's tokens, as the last block list left them, stand first in a stream, or last.

    Raises:
        NotSparse: they are neither.
    """
    if torch.equal(hidden[:, :tokens], picture):
        return True
    if torch.equal(hidden[:, -tokens:], picture):
        return False
    raise NotSparse("The model changes its tokens between its lists of blocks.")


def rows_apart(a: Tensor, b: Tensor) -> list[int]:
    """Which tokens of two (batch, tokens, …) differ."""
    apart = (a.float() - b.float()).abs() > ALIKE * a.float().abs().max()
    rows: list[int] = apart.transpose(0, 1).flatten(1).any(1).nonzero().flatten().tolist()
    return rows
