"""Results on stdout, as a table or as JSON that any parser reads; all else on stderr."""

from __future__ import annotations

import json
import math

import pytest

from fewstep.cli import show

ROWS = [{"name": "few [red]step[/red]", "speed_up": 12.5, "fits": True}, {"name": "b", "speed_up": 1e4, "fits": False}]


def test_rows_as_json_are_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_rows(ROWS, as_json=True)
    assert json.loads(capsys.readouterr().out) == ROWS


def test_rows_as_a_table_show_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_rows(ROWS, as_json=False, title="Tricks")
    out = capsys.readouterr().out
    for text in ("Tricks", "speed up", "few [red]step[/red]", "12.5", "10000", "yes", "no"):
        assert text in out


def test_no_rows_are_an_empty_table(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_rows([], as_json=True)
    assert json.loads(capsys.readouterr().out) == []
    show.print_rows([], as_json=False)


def test_facts_as_json_are_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_facts({"a": math.nan, "b": {"c": frozenset({"z", "y"})}, "d": (1, None)}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": {"c": ["y", "z"]}, "d": [1, None]}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        ((), "–"),
        (True, "yes"),
        (0.123456, "0.1235"),
        (1234.5, "1234"),
        ({"a": 1, "b": [2.0]}, "a 1, b 2"),
        (7, "7"),
    ],
)
def test_cells(value: object, text: str) -> None:
    assert show.cell(value) == text


def test_work_prints_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with show.working():
        print("chatter")
    show.note("a [b]note[/b]")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "chatter\na [b]note[/b]\n"
