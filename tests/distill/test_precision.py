"""Compilation is on inside its block only, can be paused, and is refused in one sentence where it can't be had."""

from __future__ import annotations

import pytest
from torch import nn

from fewstep.distill.precision import compiled, uncompiled
from fewstep.errors import MachineError
from fewstep.machine import Machine


def machine(*features):
    return Machine("cpu", "made up", 2, 8.0, frozenset(features))


def test_compilation_is_taken_back_and_can_be_paused(monkeypatch):
    monkeypatch.setattr(Machine, "detect", lambda: machine("compile"))
    module, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.compile()  # the caller's own, to be left alone
    own = other._compiled_call_impl
    with compiled([module, other]):
        inside = module._compiled_call_impl
        assert inside is not None
        with uncompiled(module):
            assert module._compiled_call_impl is None
        assert module._compiled_call_impl is inside
    assert module._compiled_call_impl is None
    assert other._compiled_call_impl is own
    with compiled([module], wanted=False):
        assert module._compiled_call_impl is None


def test_a_machine_that_can_not_compile_says_why(monkeypatch):
    monkeypatch.setattr(Machine, "detect", lambda: machine())
    with pytest.raises(MachineError, match="needs a C"), compiled([nn.Linear(2, 2)]):
        pass
