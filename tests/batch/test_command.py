"""What a user of `fewstep batch` can get wrong gives one sentence, and nothing is begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.batch.prompts import Request
from fewstep.cli.batch import with_steps
from tests.cli.conftest import Fewstep, fewstep  # noqa: F401

MODEL = "zoo:shapes-1step"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a red ring"}\n{"prompt": 1}\n\n{"prompt": "a", "stepz": 1}\n')
    return path


def test_broken_lines_are_all_named(fewstep: Fewstep, prompts: Path) -> None:  # noqa: F811
    ran = fewstep("batch", prompts, "-o", prompts.parent / "out", "-m", MODEL)
    assert (ran.code, ran.out) == (2, "")
    first, second, last = (line.removeprefix("error: ") for line in ran.err.splitlines())
    assert first == f"{prompts}, line 2: The 'prompt' must be a text of at least one word. Got 1."
    assert second.startswith(f"{prompts}, line 4: It has a field 'stepz'")
    assert last == f"{prompts} has 2 broken lines: mend them, or leave them out with --skip-broken."
    assert not (prompts.parent / "out").exists()


def test_of_many_broken_lines_the_numbers_are_told(fewstep: Fewstep, prompts: Path) -> None:  # noqa: F811
    prompts.write_text("nothing\n" * 13)
    ran = fewstep("batch", prompts, "-o", prompts.parent / "out", "-m", MODEL, "--skip-broken")
    told = ran.err.splitlines()
    assert ran.code == 2
    assert [line.startswith(f"left out: {prompts}, line {n}: ") for n, line in enumerate(told[:10], 1)] == [True] * 10
    assert told[10:] == [
        f"left out: {prompts}, also lines 11, 12, 13",
        f"error: {prompts} must hold at least one prompt. Got none.",
    ]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--workers", 0], "'--workers' of fewstep batch must be a whole number of at least 1. Got 0"),
        (["--batch", 0], "'--batch' of fewstep batch must be a whole number of at least 1. Got 0"),
        (["--steps", -1], "'--steps' of fewstep batch must be a whole number of at least 1. Got -1"),
        (["--format", "bmp"], "'--format' of fewstep batch must be one of png, jpg, jpeg, webp, gif, mp4. Got 'bmp'"),
        (["--model", "zoo:nothing"], "The zoo has no 'nothing'"),
        (["--recipe", "nothing"], "no ready-made recipe is 'nothing'"),
    ],
)
def test_options_that_are_wrong(fewstep: Fewstep, prompts: Path, more: list[object], why: str) -> None:  # noqa: F811
    prompts.write_text('{"prompt": "a red ring"}')
    assert why in fewstep("batch", prompts, "-o", prompts.parent / "out", "-m", MODEL, *more).refusal
    assert not (prompts.parent / "out").exists()


def test_steps_of_the_command_are_for_lines_without() -> None:
    own, none = Request(1, "a", 1, None, {"steps": 9}), Request(2, "b", 1)
    assert [one.call for one in with_steps([own, none], 4)] == [{"steps": 9}, {"steps": 4}]
    assert with_steps([own, none], None) == [own, none]
