"""Nested values: walked, rebuilt, replaced, compared, and copied only when they were written to."""

from __future__ import annotations

import torch

from fewstep.models.tracing.leaves import Snapshots, get, put, rebuild, same, walk, without

VALUE = {"a": [1, {"b": (2, torch.ones(2))}], "c": None}


def test_walk_and_get() -> None:
    found = dict(walk(VALUE))
    assert list(found) == [("a", 0), ("a", 1, "b", 0), ("a", 1, "b", 1), ("c",)]
    assert all(get(VALUE, path) is leaf for path, leaf in found.items())


def test_rebuild_keeps_the_nesting() -> None:
    again = rebuild(VALUE, lambda path, leaf: leaf if isinstance(leaf, torch.Tensor) else path)
    assert again["a"][1]["b"][0] == ("a", 1, "b", 0)
    assert isinstance(again["a"][1]["b"], tuple)


def test_put_copies_only_the_way() -> None:
    new = put(VALUE, ("a", 1, "b", 0), 9)
    assert new["a"][1]["b"][0] == 9
    assert VALUE["a"][1]["b"][0] == 2  # type: ignore[index]
    assert new["a"][1]["b"][1] is VALUE["a"][1]["b"][1]  # type: ignore[index]
    assert without(VALUE, ("c",)).keys() == {"a"}
    assert without(VALUE, ("a", 0))["a"][0] is None


def test_same_is_to_the_bit() -> None:
    ones = torch.ones(2)
    assert same({"a": [ones, 1]}, {"a": [ones.clone(), 1]})
    assert not same({"a": [ones]}, {"a": [ones.double()]})
    assert not same([ones], [ones + 1e-7])
    assert not same({"a": 1}, {"b": 1})
    assert not same(1, 1.0)


def test_snapshots_copy_once_until_written_to() -> None:
    snapshots, x = Snapshots(), torch.ones(2)
    first = snapshots.take({"x": x})["x"]
    assert snapshots.take([x])[0] is first
    x.add_(1)
    second = snapshots.take(x)
    assert first.tolist() == [1, 1]
    assert second.tolist() == [2, 2]
