"""Attention by parts of its keys, and what goes over the wire for it."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from fewstep.models.dispatch import plain_attention
from fewstep.models.gateway import Run
from fewstep.techniques.parallel.exchange import Exchange, attention_with_lse, cut_mask, merged
from fewstep.techniques.parallel.groups import gathered, same_enough, shares
from tests.distill.processes import start

BATCH, TOKENS, HEADS, FEATURES = 2, 12, 4, 8
NEAR = 1e-5


def drawn(seed: int, tokens: int = TOKENS) -> Tensor:
    return torch.randn(BATCH, tokens, HEADS, FEATURES, generator=torch.Generator().manual_seed(seed))


def whole(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


@pytest.mark.parametrize("masked", [False, True])
def test_two_sets_of_keys_merge_to_all_of_them(masked: bool) -> None:
    query, key, value = drawn(0), drawn(1), drawn(2)
    mask = torch.rand(BATCH, 1, TOKENS, TOKENS, generator=torch.Generator().manual_seed(3)) < 0.6 if masked else None
    if mask is not None:
        mask[:, :, 0, :5] = False  # sees nothing of the first part
        mask[:, :, :, 7] = True
    parts = [
        attention_with_lse(query, key[:, cut], value[:, cut], None if mask is None else mask[..., cut], {})
        for cut in (slice(0, 5), slice(5, TOKENS))
    ]
    assert torch.allclose(merged(*parts)[0], whole(query, key, value, mask), atol=NEAR)
    assert torch.allclose(merged(*parts[::-1])[0], whole(query, key, value, mask), atol=NEAR)


def test_a_scale_and_groups_of_heads_are_heard() -> None:
    query, key, value = drawn(0), drawn(1)[:, :, :2], drawn(2)[:, :, :2]
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    wanted = F.scaled_dot_product_attention(q, k, v, scale=0.3, enable_gqa=True).transpose(1, 2)
    got, _ = attention_with_lse(query, key, value, None, {"scale": 0.3, "enable_gqa": True})
    assert torch.allclose(got, wanted, atol=NEAR)


def test_a_mask_is_cut_by_rows_and_columns() -> None:
    own, rows = torch.tensor([3, 4]), torch.tensor([0, 5])
    full = torch.arange(36).view(1, 1, 6, 6)
    assert cut_mask(full, own, rows, 6, 6).tolist() == [[[[18, 23], [24, 29]]]]
    keys = torch.arange(12).view(2, 6)
    assert cut_mask(keys, own, rows, 6, 6).tolist() == [[[[0, 5]]], [[[6, 11]]]]


def test_shares_are_even_and_whole() -> None:
    assert [list(part) for part in shares(5, 3)] == [[0, 1], [2, 3], [4]]
    assert [len(part) for part in shares(2, 3)] == [1, 1, 0]
    assert same_enough(torch.ones(3), torch.ones(3) + 1e-6)
    assert not same_enough(torch.ones(3), torch.ones(3) + 1e-2)


def test_no_group_is_this_process() -> None:
    assert gathered(drawn(0), [TOKENS], 1, None) is not None


LAYOUTS = [(2, 1), (1, 2), (2, 2), (1, 4), (4, 1)]  # ulysses, ring


@pytest.mark.parametrize("processes", [2, 4])
def test_attention_of_parts_is_that_of_the_whole_and_sends_what_the_formulas_say(processes: int) -> None:
    start(_attend, processes, 120)


def _attend(rank: int) -> None:
    dist.init_process_group("gloo")
    size = dist.get_world_size()
    for ulysses, ring in LAYOUTS:
        if ulysses * ring != size:
            continue
        mesh = dist.init_device_mesh("cpu", (ring, ulysses), mesh_dim_names=("ring", "ulysses"))
        for tokens in (TOKENS, TOKENS + 1):
            _one(rank, ulysses, ring, tokens, mesh)
    dist.destroy_process_group()


def _one(rank: int, ulysses: int, ring: int, tokens: int, mesh: dist.DeviceMesh) -> None:
    groups = [mesh[name].get_group() if part > 1 else None for name, part in (("ulysses", ulysses), ("ring", ring))]
    exchange = Exchange(*groups, dist.group.WORLD)
    query, key, value = (drawn(seed, tokens) for seed in range(3))
    mask = torch.rand(BATCH, 1, tokens, tokens, generator=torch.Generator().manual_seed(3)) < 0.7
    mask[..., 0] = True
    rows = [torch.tensor(list(part)) for part in shares(tokens, exchange.parts)]
    own = rows[rank]
    for seen in (None, mask):
        before = dict(exchange.sent)
        run = Run(plain_attention, {})
        got = exchange.attend(query[:, own], key[:, own], value[:, own], seen, run, rows, rows)
        assert torch.allclose(got, whole(query, key, value, seen)[:, own], atol=NEAR)
        if tokens % exchange.parts == 0:
            number = BATCH * tokens * HEADS * FEATURES * 4  # bytes of one tensor of all tokens
            sent = {name: exchange.sent[name] - before[name] for name in before}
            assert sent["ulysses"] == 4 * number * (ulysses - 1) // ulysses // exchange.parts
            assert sent["ring"] == 2 * number * (ring - 1) // exchange.parts
    joined = exchange.gather(query[:, own], [len(part) for part in rows])
    assert torch.equal(joined, query)
