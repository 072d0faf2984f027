"""Filling a folder: nothing is made twice, damaged shards alone are made again, and a stop loses no whole shard."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from fewstep.distill.data.samples import INDEX, Index
from fewstep.distill.data.store import Filling, Sizes, fill, joined, verify
from fewstep.errors import InputError
from tests.distill.stored import SHARDS, Maker, damage, numbered, opened, store


def test_it_makes_each_sample_once(tmp_path):
    assert store(tmp_path) == list(range(14))
    assert store(tmp_path) == []
    assert [shard.samples for shard in Index.read(tmp_path).shards] == [6, 6, 2]
    assert verify(tmp_path, show=False) == []


@pytest.mark.parametrize("how", ["cut", "bit", "gone"])
def test_a_damaged_shard_is_named_and_it_alone_is_made_again(tmp_path, how):
    store(tmp_path)
    before = opened(tmp_path).read(range(14))
    kept = {name: (tmp_path / name).stat().st_mtime_ns for name in (SHARDS[0], SHARDS[2])}
    damage(tmp_path / SHARDS[1], how)
    (fault,) = verify(tmp_path, show=False)
    assert fault.startswith(f"The shard {tmp_path / SHARDS[1]} ")
    assert "\n" not in fault
    assert store(tmp_path) == list(range(6, 12))
    assert verify(tmp_path, show=False) == []
    assert kept == {name: (tmp_path / name).stat().st_mtime_ns for name in kept}
    assert torch.equal(opened(tmp_path).read(range(14)).states, before.states)


def test_a_shard_with_other_samples_than_the_index_says_is_damaged(tmp_path):
    store(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    index["shards"][0]["samples"] = 5
    (tmp_path / INDEX).write_text(json.dumps(index))
    faults = verify(tmp_path, show=False)
    assert faults[0] == f"The shard {tmp_path / SHARDS[0]} does not hold 5 samples: make it again."
    assert faults[1].endswith("holds 13 of 14 samples: go on with making them.")


def test_what_is_there_counts_with_other_sizes(tmp_path):
    store(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    index["shards"] = index["shards"][:1]
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert store(tmp_path, sizes=Sizes(batch=3, shard=5)) == list(range(6, 14))
    assert opened(tmp_path).read(range(14)).states[:, 0, 0].tolist() == list(range(14))


def test_ctrl_c_keeps_the_shard_in_hand(tmp_path):
    maker = Maker()

    def interrupted(samples):
        if 6 in samples:
            os.kill(os.getpid(), signal.SIGINT)
        return maker(samples)

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, numbered(), interrupted, Sizes(batch=4, shard=6), show=False)
    assert maker.made == list(range(12))
    assert store(tmp_path) == [12, 13]


def test_samples_made_otherwise_are_refused(tmp_path):
    store(tmp_path, numbered(seed=1))
    with pytest.raises(InputError, match="holds teacher paths made with seed = 1, and these have 2: take the same"):
        store(tmp_path, numbered(seed=2))
    with pytest.raises(InputError, match="made with times = "):
        store(tmp_path, numbered(times=(0.9, 0.0), seed=1))
    with pytest.raises(InputError, match="holds teacher paths, and these are latents of data: take another folder"):
        store(tmp_path, numbered(times=(0.0,), seed=1))
    assert store(tmp_path, numbered(seed=1)) == []


@pytest.mark.parametrize("field", ["batch", "shard", "stored"])
def test_bad_sizes_are_one_sentence(field):
    with pytest.raises(InputError, match=f"^The '{field}' of stored samples must be"):
        Sizes(**{field: 0})


def test_shards_that_come_in_another_order_are_named_once_those_before_them_are_there(tmp_path):
    filling = Filling.of(tmp_path, numbered(), Sizes(batch=4, shard=6), show=False)
    named = []
    for number in (2, 0, 1):
        samples = dict(filling.todo)[number]
        filling.keep(number, joined([Maker()(samples)]))
        named.append(len(Index.read(tmp_path).shards))
    assert named == [0, 1, 3]
    assert verify(tmp_path, show=False) == []
    assert opened(tmp_path).read(range(14)).states[:, 0, 0].tolist() == list(range(14))
