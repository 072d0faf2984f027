"""Prompts from a list, a file or a function."""

from __future__ import annotations

import pytest

from fewstep.distill.data.prompts import read_prompts
from fewstep.errors import InputError


def test_each_source_gives_n(tmp_path):
    (tmp_path / "prompts.txt").write_text("a ring\n\n a cross \n")
    assert read_prompts(["a", "b"], 3) == ["a", "b", "a"]
    assert read_prompts(tmp_path / "prompts.txt", 2) == ["a ring", "a cross"]
    assert read_prompts(str(tmp_path / "prompts.txt"), 1) == ["a ring"]
    assert read_prompts(lambda n, seed: [f"{seed}"] * n, 2, seed=7) == ["7", "7"]


def test_bad_sources_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="Prompts must be in a text file"):
        read_prompts(tmp_path / "none.txt", 1)
    for source in ([], lambda n, seed: ["one"], ["fine", 3]):
        with pytest.raises(InputError, match="'prompts' of the source of prompts"):
            read_prompts(source, 2)
