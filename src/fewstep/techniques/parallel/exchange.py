"""What processes that share a sequence send each other: tokens for heads (Ulysses), and keys and values in a ring.

All functions take (batch, tokens, heads, features) and count the bytes that leave this process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fewstep.models.gateway import Run
from fewstep.techniques.parallel.groups import gathered, rank_in, size_of


@dataclass(frozen=True)
class Exchange:
    """The processes that share a sequence: `ring` times `ulysses` of them, neighbours in `ulysses` first.

    Attributes:
        ulysses, ring, all: process groups; None where that is one process.
        sent: bytes that left this process, by what for.
    """

    ulysses: Any = None
    ring: Any = None
    all: Any = None
    sent: dict[str, int] = field(default_factory=lambda: {"ulysses": 0, "ring": 0, "gather": 0})

    @property
    def part(self) -> int:
        return rank_in(self.all)

    @property
    def parts(self) -> int:
        return size_of(self.all)

    def gather(self, part: Tensor, lengths: Sequence[int]) -> Tensor:
        """(batch, lengths[own], …) of each process -> (batch, sum of lengths, …), the same on all."""
        self.sent["gather"] += part[:, :1].nbytes * max(lengths) * (self.parts - 1)
        return gathered(part, lengths, 1, self.all)

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
        """This process's queries attend to the keys and values of all. `queries`, `keys`: the rows of each process in
        the whole sequence, of which `mask` is."""
        width, place = size_of(self.ulysses), rank_in(self.ring)
        near = slice(place * width, (place + 1) * width)  # those that heads are exchanged with
        asking, answering = ([len(rows) for rows in every[near]] for every in (queries, keys))
        q = self._to_heads(query, asking)
        k, v = self._to_heads(key, answering), self._to_heads(value, answering)
        rings = [keys[i * width : (i + 1) * width] for i in range(size_of(self.ring))]
        masks: list[Tensor | None] = [None] * len(rings)
        if mask is not None:
            lengths = [sum(map(len, every)) for every in (queries, keys)]
            own = torch.cat(list(queries[near]))
            masks = [cut_mask(mask, own, torch.cat(list(rows)), *lengths) for rows in rings]
        if self.ring is None:
            out = run(q, k, v, masks[0])
        else:
            out = self._around(q, k, v, run, masks, [sum(map(len, rows)) for rows in rings])
        return self._to_tokens(out, asking, query.shape[2])

    def _to_heads(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """All heads of the own tokens -> the own heads of all tokens (arXiv 2309.14509, section 3.1)."""
        if self.ulysses is None:
            return x
        batch, _, _, features = x.shape
        theirs = x.tensor_split(size_of(self.ulysses), 2)
        own = theirs[rank_in(self.ulysses)].shape[2]
        shapes = [(batch, length, own, features) for length in lengths]
        return torch.cat(self._all_to_all(theirs, shapes), 1)

    def _to_tokens(self, x: Tensor, lengths: Sequence[int], heads: int) -> Tensor:
        """The inverse of `_to_heads`, of so many heads in all."""
        if self.ulysses is None:
            return x
        batch, _, _, features = x.shape
        own = lengths[rank_in(self.ulysses)]
        split = torch.arange(heads).tensor_split(size_of(self.ulysses))
        shapes = [(batch, own, len(part), features) for part in split]
        return torch.cat(self._all_to_all(torch.split(x, list(lengths), 1), shapes), 2)

    def _all_to_all(self, given: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """One of the tensors to each process; what they give, which has these shapes."""
        flat = torch.cat([part.flatten() for part in given])
        sizes = [math.prod(shape) for shape in shapes]
        got = flat.new_empty(sum(sizes))
        dist.all_to_all_single(got, flat, sizes, [part.numel() for part in given], group=self.ulysses)
        kept = given[rank_in(self.ulysses)]
        self.sent["ulysses"] += (flat.numel() - kept.numel()) * flat.element_size()
        return [part.view(shape) for part, shape in zip(torch.split(got, sizes), shapes, strict=True)]

    def _around(
        self, q: Tensor, k: Tensor, v: Tensor, run: Run, masks: Sequence[Tensor | None], lengths: Sequence[int]
    ) -> Tensor:
        """Attention to one process's keys, of these lengths, after the other's (arXiv 2310.01889): while one part is
        computed, the next one is on its way."""
        size, place = size_of(self.ring), rank_in(self.ring)
        after, before = (dist.get_global_rank(self.ring, (place + step) % size) for step in (1, -1))
        whole: tuple[Tensor, Tensor] | None = None
        pair = torch.stack([k, v])
        for step in range(size):
            source, waiting = (place - step) % size, []
            if step < size - 1:
                coming = pair.new_empty(2, len(k), lengths[(source - 1) % size], *k.shape[2:])
                ends = dist.P2POp(dist.isend, pair, after, self.ring), dist.P2POp(dist.irecv, coming, before, self.ring)
                waiting = dist.batch_isend_irecv(list(ends))
                self.sent["ring"] += pair.nbytes
            part = attention_with_lse(q, pair[0], pair[1], masks[source], run.options)
            whole = part if whole is None else merged(whole, part)
            for one in waiting:
                one.wait()
            if waiting:
                pair = coming
        assert whole is not None
        return whole[0].to(q.dtype)


def merged(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention to two sets of keys from that to each: outputs (batch, tokens, heads, features) and log-sum-exps
    (batch, tokens, heads), float32."""
    lse = torch.logaddexp(a[1], b[1])
    parts = (out * (own - lse).exp().nan_to_num()[..., None] for out, own in (a, b))
    return sum(parts, start=torch.zeros_like(a[0])), lse


def attention_with_lse(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Attention of (batch, tokens, heads, features) and the log-sum-exp of its logits, (batch, tokens, heads), both
    float32. Of what sees nothing: 0 and minus infinity."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if options.get("enable_gqa"):
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scale = options.get("scale") or q.shape[-1] ** -0.5
    if q.is_cuda and mask is None and q.dtype in (torch.float16, torch.bfloat16):
        flash = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)
        out, lse = flash[0], flash[1]
    else:
        logits = q.float() @ k.float().transpose(-1, -2) * scale
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        lse = logits.logsumexp(-1)
        out = (logits - lse[..., None]).exp().nan_to_num() @ v.float()
    return out.transpose(1, 2).float(), lse.transpose(1, 2).float()


def cut_mask(mask: Tensor, queries: Tensor, keys: Tensor, asking: int, answering: int) -> Tensor:
    """These rows and columns of a mask over whole sequences of so many tokens: (…, queries or 1, keys)."""
    if mask.ndim == 2 and mask.shape != (asking, answering):  # (batch, keys), the same for all queries
        mask = mask[:, None, None, :]
    mask = mask.index_select(-1, keys)
    return mask.index_select(-2, queries) if mask.shape[-2] == asking > 1 else mask
