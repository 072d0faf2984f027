"""Reading stored samples: batches by number, one content in place of another, and damage that is named."""

from __future__ import annotations

import pytest
import torch

from fewstep.distill.data import samples as data
from fewstep.distill.data.samples import INDEX, PathSet
from fewstep.distill.data.store import Sizes
from fewstep.errors import CheckpointError, InputError
from tests.distill.stored import SHARDS, damage, numbered, opened, store


def test_batches_run_through_the_set_once_an_epoch_in_a_repeatable_order(tmp_path):
    store(tmp_path, numbered(12))
    batch = opened(tmp_path).batches(4, seed=3)
    epochs = [torch.cat([batch(step).states[:, 0, 0] for step in range(e * 3, e * 3 + 3)]) for e in range(2)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(12))
    assert not torch.equal(epochs[0], epochs[1])
    with pytest.raises(InputError, match="'batch' of training"):
        opened(tmp_path).batches(0)


def test_pairs_stay_together(tmp_path):
    store(tmp_path, numbered(samples=15, times=(0.0,), pairs=True))
    paths = opened(tmp_path)
    batch = paths.batches(4, seed=0)
    rows = torch.cat([batch(step).states[:, 0, 0] for step in range(15)]).long()
    assert paths.paired
    for epoch in rows.split(15):
        assert sorted(epoch.tolist()) == list(range(15))
        assert (epoch[0:14:2] % 2 == 0).all()
        assert torch.equal(epoch[1:14:2], epoch[0:14:2] + 1)
        assert epoch[14] == 14  # the one without another
    assert not torch.equal(rows[:15], rows[15:30])
    store(tmp_path / "plain", numbered(samples=15, times=(0.0,)))
    assert not opened(tmp_path / "plain").paired


def test_batches_come_by_number_in_any_order_and_process(tmp_path):
    store(tmp_path)
    one, other = (opened(tmp_path).batches(5, seed=3) for _ in range(2))
    forwards, numbers = [one(step) for step in range(9)], [7, 0, 8, 3, 3, 1]
    for number in numbers:
        again = other(number)
        assert torch.equal(again.states, forwards[number].states)
        assert torch.equal(again.cond, forwards[number].cond)
        assert torch.equal(again.cond, again.states[:, 0, 0].long() % 3)


def test_a_set_that_is_kept_whole_gives_the_same_batches_and_reads_each_shard_once(tmp_path, monkeypatch):
    store(tmp_path, numbered(20), Sizes(shard=3))
    read_by_row = opened(tmp_path).batches(5, seed=3)
    wanted = [read_by_row(step) for step in range(9)]
    reads, mapped = [], data.mapped
    monkeypatch.setattr(data, "mapped", lambda path: reads.append(path.name) or mapped(path))
    whole = opened(tmp_path).batches(5, seed=3, room=10**6)
    found = [whole(step) for step in range(9)]
    assert sorted(reads) == [f"shard-{number:05d}.safetensors" for number in range(7)]
    cramped = opened(tmp_path).batches(5, seed=3, room=100)
    for one, other in zip([*wanted, wanted[2]], [*found, cramped(2)], strict=True):
        assert torch.equal(one.states, other.states)
        assert torch.equal(one.cond, other.cond)


def test_few_shards_are_open_at_once(tmp_path, monkeypatch):
    store(tmp_path, numbered(20), Sizes(shard=1))
    whole, checks, check = opened(tmp_path), [], data.check
    monkeypatch.setattr(data, "OPEN", 3)
    monkeypatch.setattr(data, "check", lambda *given: checks.append(check(*given)))
    for _ in range(2):
        assert whole.read(range(20)).states[:, 0, 0].tolist() == list(range(20))
        assert list(whole._open) == [17, 18, 19]
    assert len(checks) == 20  # opened again, and not read whole again


def test_latents_have_their_end_alone_and_paths_serve_in_their_place(tmp_path):
    store(tmp_path / "latents", numbered(times=(0.0,)))
    store(tmp_path / "paths")
    latents, paths = opened(tmp_path / "latents"), opened(tmp_path / "paths")
    batch = latents.read([4, 2])
    assert batch.times == (0.0,)
    assert batch.states[:, -1].tolist() == [[4, 4], [2, 2]]
    for content in ("latents", "prompts"):
        paths.check_serves(content, "SiD")
        latents.check_serves(content, "SiD")
    with pytest.raises(InputError, match=r"^KD needs teacher paths, and .*latents holds latents of data\.$"):
        latents.check_serves("paths", "KD")
    with pytest.raises(InputError, match="A student of some steps needs teacher paths"):
        opened(tmp_path / "latents", 1)
    assert latents.fingerprint != paths.fingerprint


@pytest.mark.parametrize("how", ["cut", "bit", "gone"])
def test_a_damaged_shard_is_named(tmp_path, how):
    store(tmp_path)
    paths = opened(tmp_path)
    damage(tmp_path / SHARDS[1], how)
    paths.read([0, 1])  # the shard before is fine
    with pytest.raises(CheckpointError, match=rf"^The shard .*{SHARDS[1]} .*make it again\.$") as caught:
        paths.read([0, 7])
    assert "\n" not in str(caught.value)


def test_a_damaged_index_is_named(tmp_path):
    with pytest.raises(InputError, match="There are no teacher paths, latents or prompts in"):
        PathSet(tmp_path)
    store(tmp_path)
    good = (tmp_path / INDEX).read_text()
    for bad in ('{"format": 2}', good.replace('"paths"', '"pictures"'), good.replace('"shape"', '"form"'), "{"):
        (tmp_path / INDEX).write_text(bad)
        with pytest.raises(CheckpointError, match=r"index .* is damaged"):
            PathSet(tmp_path)
    (tmp_path / INDEX).write_text(good.replace('"format": 2', '"format": 1'))
    with pytest.raises(CheckpointError, match=r"The 'format' of .*paths.json must be 2\. Got 1\."):
        PathSet(tmp_path)
