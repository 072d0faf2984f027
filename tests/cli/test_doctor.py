"""What the doctor says of a machine, and of the tricks on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.machine import FEATURES, Machine
from fewstep.techniques import TECHNIQUES
from fewstep.zoo.registry import NAMES, info
from tests.cli.conftest import Fewstep


def test_a_machine_without_features(fewstep: Fewstep, model: Path, bare_machine: Machine) -> None:
    told = fewstep("doctor", "--model", model, "--json").json
    assert told["machine"]["name"] == "an old CPU"
    assert told["machine"]["features"] == []
    assert set(told["machine"]["missing"]) == set(FEATURES)
    assert told["machine"]["versions"]["torch"]
    assert {row["trick"] for row in told["tricks"]} == set(TECHNIQUES)
    why = {(row["trick"], row["setting"]): row["why_not"] for row in told["tricks"]}
    assert why["quantize", "scheme fp8-dynamic"] == bare_machine.missing("fp8")
    assert why["compile", "–"] == bare_machine.missing("compile")
    assert all(row["fits"] == (row["why_not"] == "") for row in told["tricks"])


def test_a_trick_that_fits(fewstep: Fewstep, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    able = Machine("cpu", "a new CPU", 2, 8.0, frozenset({"bf16", "int8", "compile"}))
    monkeypatch.setattr("fewstep.machine._detect", lambda: able)
    rows = fewstep("doctor", "--model", model, "--json").json["tricks"]
    fits = {(row["trick"], row["setting"]) for row in rows if row["fits"]}
    assert ("precision", "–") in fits
    assert ("quantize", "scheme fp8-dynamic") not in fits
    students = {f"student zoo:{name}" for name in NAMES if info(name).teacher}
    assert {row["setting"] for row in rows if row["trick"] == "few_step"} == students
    assert len(students) >= 3


def test_as_tables(fewstep: Fewstep, model: Path) -> None:
    ran = fewstep("doctor", "--model", model)
    assert ran.code == 0
    assert "This machine" in ran.out
    assert "why not" in ran.out
