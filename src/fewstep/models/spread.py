"""A transformer's blocks spread over processes: each computes a part of the tokens, and attention sees all of them.

Every list of blocks gets a part of the picture's tokens, and of the text's where the blocks pass it on, and gives back
all of them, so that nothing between and around the lists knows of it. Which rows of a joint sequence are whose is
learned as for `Sparse`, by a whole call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.models.gateway import Run, Slot
from fewstep.models.passes import Counting, Layout, Sequences, Taken, take
from fewstep.models.streams import BlockList, arguments, hidden_name, unpack, with_streams


class Links(Protocol):
    """What the processes that share a sequence send each other. A process is a `part` of so many `parts`.

    Rows are those of each part, (rows,); the order of a sequence is that of its parts, one after the other.
    """

    @property
    def part(self) -> int: ...

    @property
    def parts(self) -> int: ...

    def gather(self, part: Tensor, lengths: Sequence[int]) -> Tensor:
        """(batch, lengths[part], …) of each process -> (batch, sum of lengths, …), the same on all."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        run: Run,
        queries: Sequence[Tensor],
        keys: Sequence[Tensor],
    ) -> Tensor:
        """Attention of this part's queries, (batch, tokens, heads, features), to the keys and values of all.

        `queries`, `keys`: which rows of the whole sequence each part has; `mask` is one of the whole.
        """


Rows = tuple[Tensor, ...]  # of a sequence, those of each part


@dataclass(frozen=True)
class Cut:
    """Which rows of a sequence each of so many parts has: a stretch of the picture's tokens and one of the text's, as
    even as they go. `tokens`: of the picture."""

    tokens: int
    parts: int
    device: torch.device

    def words(self, text: int) -> Rows:
        """Of the text alone."""
        return _words(self, text)

    def rows(self, length: int, first: bool) -> Rows:
        """Of a sequence of `length` in which the picture stands `first`, else last."""
        return _rows(self, length, first)


@lru_cache(maxsize=64)  # every attention of every step asks
def _words(cut: Cut, text: int) -> Rows:
    return torch.arange(text, device=cut.device).tensor_split(cut.parts)


@lru_cache(maxsize=64)
def _rows(cut: Cut, length: int, first: bool) -> Rows:
    text = length - cut.tokens
    pairs = zip(_words(cut, cut.tokens), _words(cut, text), strict=True)
    return tuple(torch.cat([own, cut.tokens + word] if first else [word, text + own]) for own, word in pairs)


@dataclass(frozen=True)
class Entered:
    """What came to a list of blocks: the number of its tokens, and of those of the text that goes beside them."""

    hidden: int
    text: int


@dataclass
class Spread(Counting):
    """One call of a denoiser, of whose tokens this process has a part.

    Attributes:
        layouts: of each list of blocks.
        joint: the attentions of a block, by list, whose keys have text among them.
        links: to the processes with the other parts.
    """

    layouts: dict[str, Layout]
    joint: dict[str, set[Slot]]
    links: Links
    cut: Cut | None = None
    entered: dict[str, Entered] = field(default_factory=dict)
    taken: Taken = field(default_factory=Taken)

    def attend(self, slot: Slot, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, run: Run) -> Tensor:
        path, _, within = slot[0].partition(":")
        one, call = path.rpartition(".")[0], (within, slot[1])
        first = self.layouts[one].keys_first.get(call)
        if first is None:  # of text alone, which every process has whole
            return run(query, key, value, mask)
        assert self.cut is not None
        text = self.entered[one].text + self.entered[one].hidden - self.cut.tokens
        keys = self.cut.rows(self.cut.tokens + text if call in self.joint[one] else self.cut.tokens, first)
        same = query.shape[1] == key.shape[1]
        queries = keys if same else self.cut.rows(self.cut.tokens, first)
        return self.links.attend(query, key, value, mask, run, queries, keys)

    def block(self, one: BlockList, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given, streams = arguments(one.modules[index], args, kwargs), one.streams(index, args, kwargs)
        if index == 0:
            self.entered[one.path] = Entered(
                streams["hidden"].shape[1], streams["encoder"].shape[1] if "encoder" in streams else 0
            )
            if self.cut is None:
                self.cut = self._cut(streams["hidden"])
        sequences, names = self._sequences(one), {id(value): name for name, value in given.items()}
        own = {"hidden": hidden_name(given), "encoder": "encoder_hidden_states"}
        passed = {own[stream] for stream in streams}

        def part(value: Any) -> Any:
            name = names.get(id(value), "")
            if name in passed:
                return take(value, sequences[value.shape[1]]) if index == 0 else value
            return value if name.startswith("encoder") else self.taken.of(value, sequences)

        output = forward(*map(part, args), **{name: part(value) for name, value in kwargs.items()})
        if index < len(one.modules) - 1:
            return output
        assert self.cut is not None
        rows = {"hidden": self.cut.rows(self.entered[one.path].hidden, self.layouts[one.path].hidden_first)}
        rows["encoder"] = self.cut.words(self.entered[one.path].text)
        parts = unpack(output, one.outputs[index])
        whole = {name: self._gathered(stream, rows[name]) for name, stream in parts.items()}
        return with_streams(output, one.outputs[index], whole)

    def _sequences(self, one: BlockList) -> Sequences:
        """Of those that a block may be given something for."""
        assert self.cut is not None
        entered, layout = self.entered[one.path], self.layouts[one.path]
        joint = self.cut.rows(entered.hidden + entered.text, next(iter(layout.keys_first.values())))
        parts = {
            entered.text: self.cut.words(entered.text),
            entered.hidden + entered.text: joint,
            self.cut.tokens: self.cut.rows(self.cut.tokens, True),
            entered.hidden: self.cut.rows(entered.hidden, layout.hidden_first),
        }
        return {length: rows[self.links.part][None] for length, rows in parts.items() if length}

    def _cut(self, picture: Tensor) -> Cut:
        tokens, parts = picture.shape[1], self.links.parts
        if tokens < parts:
            raise FewstepError(f"{tokens} tokens can't be spread over {parts} processes.")
        return Cut(tokens, parts, picture.device)

    def _gathered(self, part: Tensor, rows: Rows) -> Tensor:
        whole = self.links.gather(part, [len(own) for own in rows])
        return whole.index_select(1, torch.cat(rows).argsort())
