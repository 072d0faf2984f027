"""What all techniques share."""

from __future__ import annotations

from fewstep.techniques import Compile, Quantize, Stage
from fewstep.techniques.base import undo_all


def test_the_stages_stand_in_the_order_of_the_design() -> None:
    assert [stage.name for stage in sorted(Stage)] == [
        "WEIGHTS",
        "QUANTIZE",
        "SHARD",
        "ATTENTION",
        "CACHE",
        "COMPILE",
        "HOST",
    ]


def test_given_holds_only_what_differs_from_the_defaults() -> None:
    assert Compile().given() == {}
    assert Quantize(skip=("to_q",), min_features=128).given() == {"skip": ["to_q"]}


def test_undo_all_runs_backwards_and_once() -> None:
    order: list[int] = []
    undo = undo_all([lambda: order.append(1), lambda: order.append(2)])
    undo()
    undo()
    assert order == [2, 1]
