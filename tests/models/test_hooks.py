"""Hooks: on one instance only, nested, off in any order, and gone without a mark."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.errors import InputError
from fewstep.models.hooks import Hook, wrapped

X = torch.tensor([2.0])


class Twice(nn.Module):
    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        return x * scale


def plus(number: float) -> Any:
    return lambda forward, *args, **kwargs: forward(*args, **kwargs) + number


def times(number: float) -> Any:
    return lambda forward, *args, **kwargs: forward(*args, **kwargs) * number


def test_a_hook_is_on_one_instance_and_leaves_no_mark() -> None:
    module, other = Twice(), Twice()
    before = dict(vars(module))
    with wrapped(module, plus(1)):
        assert module(X) == 5
        assert other(X) == 4
        assert list(inspect.signature(module.forward).parameters) == ["x", "scale"]
    assert dict(vars(module)) == before
    assert module(X) == 4


def test_it_comes_off_after_an_exception() -> None:
    module = Twice()
    with pytest.raises(RuntimeError, match="stop"), wrapped(module, plus(1)):
        raise RuntimeError("stop")
    assert "forward" not in vars(module)


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("second", [0, 1])
def test_hooks_come_off_in_any_order(first: int, second: int) -> None:
    module = Twice()
    hooks = [Hook(module, fn).install() for fn in (plus(1), times(3), plus(10))]
    assert module(X) == (4 + 1) * 3 + 10
    left = [0, 1, 2]
    for place in (first, second):
        hooks[left.pop(place)].remove()
        expected = 4.0
        for i in left:
            expected = expected * 3 if i == 1 else expected + (1, 0, 10)[i]
        assert module(X) == expected
    hooks[left[0]].remove()
    assert "forward" not in vars(module)


def test_what_was_there_before_comes_back() -> None:
    module = Twice()
    module.forward = own = lambda x: x - 1  # type: ignore[method-assign]
    low, high = Hook(module, plus(1)).install(), Hook(module, plus(1)).install()
    low.remove()
    assert module(X) == 2
    high.remove()
    assert vars(module)["forward"] is own


def test_installing_and_removing_twice_change_nothing() -> None:
    module = Twice()
    hook = Hook(module, plus(1)).install().install()
    assert module(X) == 5
    hook.remove()
    hook.remove()
    assert module(X) == 4
    assert not hook.installed


def test_it_refuses_to_come_off_from_under_other_code() -> None:
    module = Twice()
    hook = Hook(module, plus(1)).install()
    ours = module.forward
    module.forward = lambda x: ours(x)  # type: ignore[method-assign]
    with pytest.raises(InputError, match="forward of Twice was wrapped by other code"):
        hook.remove()
    assert module(X) == 5
