"""Checkpoints: what is kept, what goes, and that nothing half-written or half-deleted looks like one."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from fewstep.distill.engine.checkpoint import clean, folder, go_back, load, read_state, save, saved
from fewstep.distill.engine.optimizers import Options, build
from fewstep.errors import CheckpointError


def steps(run):
    return [read_state(path)["step"] for path in saved(run)]


def trained(seed, rounds=2):
    """A module and its optimizer after so many steps."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        ones = build("muon", module, Options(1e-2))
        for _ in range(rounds):
            for p in module.parameters():
                p.grad = torch.randn_like(p)
            for one in ones:
                one.step()
    return module, ones


def states(ones):
    return [value for one in ones for entry in one.state_dict()["state"].values() for value in entry.values()]


def test_weights_and_optimizers_come_back_to_the_bit(tmp_path):
    (module, ones), (other, theirs) = trained(0), trained(1, rounds=0)
    place = save(tmp_path, 3, {"student": module}, {"student": ones}, {"note": "x"})
    load(place, {"student": other}, {"student": theirs})
    assert read_state(place) == {"note": "x", "step": 3}
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert len(states(ones)) == len(states(theirs)) == 2 + 2 * 3
    assert all(torch.equal(a, b) for a, b in zip(states(ones), states(theirs), strict=True))


def test_the_newest_and_those_to_keep_are_kept(tmp_path):
    for step in range(1, 7):
        save(tmp_path, step, {}, {}, {}, keep=(2,) if step >= 2 else ())
    assert steps(tmp_path) == [2, 5, 6]
    save(tmp_path, 7, {}, {}, {}, keep=(6,))
    assert steps(tmp_path) == [6, 7]


def test_going_back_makes_an_earlier_one_the_newest(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, {}, {}, {"note": "old"}, keep=(1, 2))
    go_back(tmp_path, 2, {"note": "new"})
    assert steps(tmp_path) == [1, 2]
    assert [read_state(path)["note"] for path in saved(tmp_path)] == ["old", "new"]


def test_half_deleted_it_is_none(tmp_path, monkeypatch):
    for step in (1, 2):
        save(tmp_path, step, {}, {}, {})

    def killed(path, ignore_errors=False):
        if not ignore_errors:  # those are only what writing leaves
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        go_back(tmp_path, 1, {})
    assert steps(tmp_path) == [1]
    clean(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_another_models_weights_and_missing_files_are_named(tmp_path):
    module, ones = trained(0)
    place = save(tmp_path, 1, {"student": module}, {"student": ones}, {})
    assert place == folder(tmp_path, 1)
    for load_it in (
        lambda: load(place, {"student": nn.Linear(2, 2)}),
        lambda: load(place, {"critic": nn.Linear(2, 2)}),
        lambda: load(place, {"student": module}, {"critic": ones}),
    ):
        with pytest.raises(CheckpointError, match="step-00000001 can't be read"):
            load_it()
    shutil.rmtree(place)
    with pytest.raises(CheckpointError, match="step-00000001 can't be read"):
        read_state(place)
