"""Many processes: the losses of one that takes their batches in turn, whatever they share, resumed on others."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from fewstep.distill.engine.checkpoint import SHARDS, saved
from fewstep.distill.engine.loop import Settings, train
from fewstep.distill.engine.parallel import Parallel, buckets, found
from fewstep.distill.engine.sharding import shard
from fewstep.distill.watching.guard import Guard, Policy, Probe, Reference
from fewstep.errors import CheckpointError, FewstepError, InputError, MachineError
from tests.distill.processes import Pair, batches, start

ONE = Settings(steps=6, rate=1e-2, warmup=2, accumulate=2, rates={"critic": 2e-2}, save_every=100)
TWO = replace(ONE, accumulate=1)


def go(folder, settings, kind="none", method=None, whole=False, **kwargs):
    parallel = found(kind, whole=whole)
    return train(method or Pair(), batches, folder, settings, parallel=parallel, show=False, **kwargs)


def both(folder, settings=TWO, kind="ddp", **kwargs):
    """By two processes, each of which makes its method itself; the first one's averages are saved beside."""

    def work(rank):
        # The second one's student starts elsewhere: all must take the first one's weights.
        method = Pair(seed=10 * rank, unequal=kwargs.get("unequal", False))
        rest = {name: value for name, value in kwargs.items() if name != "unequal"}
        done = go(folder, settings, kind, method, **rest)
        if rank == 0:
            torch.save({name: module.state_dict() for name, module in done.averages.items()}, folder / "averages.pt")

    start(work)


def losses(folder):
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return torch.tensor([[*line["loss"].values(), *line["gradient"].values(), line["rate"]] for line in lines])


def same(a, b):
    torch.testing.assert_close(losses(a), losses(b), rtol=1e-5, atol=1e-6)


def stop_at(step, rank=0):
    def watch(now, averages):
        if now == step and int(os.environ.get("RANK", 0)) == rank:
            os.kill(os.getpid(), signal.SIGINT)

    return watch


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with two batches a step: what all others must equal."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, go(folder, ONE)


def test_two_replicas_are_one_process_with_both_batches(alone, tmp_path):
    both(tmp_path)
    same(tmp_path, alone[0])
    averages = torch.load(tmp_path / "averages.pt")
    for name, value in alone[1].averages["student"].state_dict().items():
        torch.testing.assert_close(averages["student"][name], value, rtol=1e-4, atol=1e-5)
    assert not (saved(tmp_path)[-1] / SHARDS).exists()


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_two_halves_are_one_process_with_both_batches(alone, tmp_path, whole):
    both(tmp_path, kind="fsdp", whole=whole)
    same(tmp_path, alone[0])
    averages = torch.load(tmp_path / "averages.pt")
    for name, value in alone[1].averages["critic"].state_dict().items():
        torch.testing.assert_close(averages["critic"][name], value, rtol=1e-4, atol=1e-5)
    assert len(list((saved(tmp_path)[-1] / SHARDS).glob("*.safetensors"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [("fsdp", "none"), ("none", "fsdp"), ("ddp", "fsdp"), ("fsdp", "ddp")])
def test_a_run_goes_on_with_another_number_of_processes(alone, tmp_path, first, then):
    for kind, watch in ((first, stop_at(3)), (then, None)):
        if kind == "none":
            go(tmp_path, ONE, watch=watch)
        else:
            both(tmp_path, kind=kind, watch=watch)
    same(tmp_path, alone[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_ctrl_c_on_any_process_stops_all_after_the_same_step(alone, tmp_path, kind):
    def work(rank):
        done = go(tmp_path, TWO, kind, watch=stop_at(2, rank=1))
        assert (done.step, done.finished) == (2, False)

    start(work)
    assert len(losses(tmp_path)) == 2
    both(tmp_path, kind=kind)
    same(tmp_path, alone[0])


@pytest.mark.slow
def test_unequal_calls_are_told_and_allowed_where_networks_are_whole(tmp_path):
    go(tmp_path / "alone", ONE, method=Pair(unequal=True))
    both(tmp_path, kind="fsdp", whole=True, unequal=True)
    same(tmp_path, tmp_path / "alone")

    def work(rank):
        with pytest.raises(FewstepError, match=r"no longer do the same: .* Parallel\(whole=True\) lifts that"):
            go(tmp_path / "refused", TWO, "fsdp", Pair(unequal=True))

    start(work)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_guard_comes_to_the_same_verdicts(tmp_path, kind):
    def guard():
        draw = torch.Generator().manual_seed(0)
        noise, teacher = torch.randn(12, 3, generator=draw), torch.randn(3, 4, 3, generator=draw)
        probe = Probe(lambda net: net(noise).unflatten(0, (3, 4)), Reference.of(2 * teacher))
        return Guard(probe, Policy(every=2, patience=1, within=0.0, across=0.0, saturation=0.2, backs=1))

    settings = replace(ONE, steps=14, rate=0.1, ema=0.0, warmup=0)
    go(tmp_path / "alone", settings, guard=guard())
    both(tmp_path, replace(settings, accumulate=1), kind, guard=guard())
    one, two = ((place / "guard.jsonl").read_text().splitlines() for place in (tmp_path / "alone", tmp_path))
    actions = [[json.loads(line)["action"] for line in lines] for lines in (one, two)]
    assert actions[0] == actions[1]
    assert "back" in actions[0]
    torch.testing.assert_close(losses(tmp_path), losses(tmp_path / "alone"), rtol=1e-3, atol=1e-4)


def test_one_process_can_be_sharded_too_and_plain_again(alone, tmp_path):
    """The way of sharded checkpoints without other processes: to and fro, and damage is named."""
    for kind, watch in (("fsdp", stop_at(2)), ("none", stop_at(4)), ("fsdp", None)):
        done = go(tmp_path, ONE, kind, watch=watch)
    assert done.finished
    same(tmp_path, alone[0])
    for a, b in zip(done.averages["student"].parameters(), alone[1].averages["student"].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    shard = next((saved(tmp_path)[-1] / SHARDS).glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"step-00000006 can't be read .*delete that folder"):
        go(tmp_path, ONE)


def test_what_can_not_be_sharded_says_so(tmp_path):
    with pytest.raises(InputError, match="'judge' of this method is several networks and can't be sharded: take ddp"):
        shard({"judge": nn.ModuleList([nn.Linear(2, 2)])}, Parallel())
    with pytest.raises(InputError, match="Muon makes whole matrices orthogonal"):
        go(tmp_path, replace(ONE, optimizer="muon"), "fsdp")
    with pytest.raises(InputError, match="turn 'compile' off"):
        go(tmp_path, replace(ONE, compile=True), "fsdp")
    method = Pair()
    go(tmp_path, replace(ONE, steps=1), "fsdp", method)
    with pytest.raises(InputError, match="'student' of this method is sharded already"):
        go(tmp_path, replace(ONE, steps=1), "fsdp", method)


def test_a_process_learns_from_torchrun_who_it_is():
    assert found("none", environment={}).size == 1
    told = {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "0"}
    third = found("ddp", 4, environment=told)
    assert (third.kind, third.rank, third.size, third.first) == ("ddp", 2, 4, False)
    with pytest.raises(MachineError, match=r"was to have 4 processes and has 1: .* `torchrun --nproc-per-node 4"):
        found("fsdp", 4, environment={})
    with pytest.raises(InputError, match="4 processes were started, which do not train together: ask for ddp or fsdp"):
        found("none", environment=told)
    with pytest.raises(InputError, match=r"^The 'kind' of parallel training must be one of none, ddp, fsdp"):
        found("zero", environment={})


def test_buckets_keep_order_dtype_and_size():
    tensors = [torch.zeros(size) for size in (3, 2, 9, 1)] + [torch.zeros(2, dtype=torch.float64)]
    assert [[len(one) for one in bucket] for bucket in buckets(tensors, size=20)] == [[3, 2], [9], [1], [2]]
    assert list(buckets([])) == []


def test_alone_nothing_is_asked_of_others():
    parallel = Parallel()
    parallel.wait()
    parallel.agree("anything")
    assert parallel.any(True)
    assert parallel.from_first("mine") == "mine"
    assert torch.equal(parallel.mean(torch.ones(2)), torch.ones(2))
