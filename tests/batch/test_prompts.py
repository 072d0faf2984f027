"""Files of prompts: right lines, wrong lines, and any bytes at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.batch.prompts import FIELDS, Prompts, Request, parse, read, seed_of
from fewstep.errors import InputError

TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1).filter(str.strip)
LINE = st.fixed_dictionaries(
    {"prompt": TEXT},
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "steps": st.integers(1, 100),
        "guidance": st.floats(0, 30),
        "width": st.integers(1, 4096),
        "height": st.integers(1, 4096),
        "frames": st.integers(1, 200),
        "negative_prompt": TEXT,
    },
)


def lines(*values: Any) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


@given(st.lists(LINE, max_size=5), st.booleans())
def test_what_is_right_is_read_as_it_was_written(written: list[dict[str, Any]], ascii: bool) -> None:
    text = "".join(json.dumps(line, ensure_ascii=ascii) + "\n" for line in written)
    found = parse(text.encode())
    assert found.broken == ()
    for number, (line, request) in enumerate(zip(written, found.requests, strict=True), 1):
        call = {name: value for name, value in line.items() if name not in ("prompt", "seed")}
        seed = line.get("seed", seed_of(line["prompt"]))
        assert request == Request(number, line["prompt"], seed, None, call)


@given(st.binary(), st.booleans())
def test_any_bytes_give_each_line_once(data: bytes, plain: bool) -> None:
    found = parse(data, plain=plain)
    numbers = [one.line for one in (*found.requests, *found.broken)]
    whole = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert sorted(numbers) == [n for n, line in enumerate(whole, 1) if line.strip()]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_no_other_json_is_a_line(value: Any) -> None:
    (broken,) = parse(lines(value)).broken
    assert broken.why.startswith("It must be a JSON object with a 'prompt'.")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"prompt": "a"', "It is no JSON: "),
        (b"[" * 100_000, "It is no JSON: "),
        (b'{"prompt": "\xff"}', "It is no UTF-8."),
        (b'{"prompt": "a", "prompt": "b"}', "The 'prompt' is there twice."),
        (b"{}", "It has no 'prompt'."),
        (b'{"prompt": " "}', "The 'prompt' must be a text of at least one word. Got ' '."),
        (b'{"prompt": "a\\u0000"}', "The 'prompt' must be a text of at least one word."),
        (b'{"prompt": "a", "stepz": 4}', f"It has a field 'stepz', and a line may have {', '.join(FIELDS)}."),
        (b'{"prompt": "a", "steps": 0}', "The 'steps' must be a whole number, at least 1. Got 0."),
        (b'{"prompt": "a", "steps": true}', "The 'steps' must be a whole number, at least 1. Got True."),
        (b'{"prompt": "a", "steps": 4.0}', "The 'steps' must be a whole number, at least 1. Got 4.0."),
        (b'{"prompt": "a", "seed": -1}', "The 'seed' must be a whole number from 0 to 2^63 - 1. Got -1."),
        (b'{"prompt": "a", "guidance": NaN}', "The 'guidance' must be a number, at least 0. Got nan."),
        (b'{"prompt": "a", "id": ""}', "The 'id' must be a text or a whole number. Got ''."),
        (b'{"prompt": "a", "negative_prompt": null}', "The 'negative_prompt' must be a text. Got None."),
    ],
)
def test_a_broken_line_is_named_and_the_others_stay(line: bytes, why: str) -> None:
    found = parse(b'{"prompt": "first"}\n\n' + line + b'\n{"prompt": "last", "id": 7}')
    assert [request.prompt for request in found.requests] == ["first", "last"]
    assert found.requests[1].id == "7"
    (broken,) = found.broken
    assert broken.line == 3
    assert broken.why.startswith(why)


def test_an_id_stands_for_one_thing() -> None:
    same = {"prompt": "a", "id": "x"}
    found = parse(lines(same, same, {"prompt": "b", "id": "x"}))
    assert [request.line for request in found.requests] == [1, 2]
    assert [(one.line, one.why) for one in found.broken] == [
        (3, "The 'id' 'x' is that of line 1, which asks for another.")
    ]


def test_plain_lines(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes('\ufeffa red ring\r\n\n  {"prompt": 1}\n'.encode())
    expected = [Request(n, text, seed_of(text)) for n, text in ((1, "a red ring"), (3, '{"prompt": 1}'))]
    assert read(tmp_path / "p.txt") == Prompts(tuple(expected), ())


def test_seeds_are_the_prompts_own() -> None:
    assert seed_of("a red ring") == seed_of("a red ring") != seed_of("a blue ring")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no file .*none\.jsonl"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match=r"ends in one of \.jsonl, \.ndjson, \.txt\. Got .*p\.csv"):
        read(tmp_path / "p.csv")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(InputError, match="Could not read"):
        read(tmp_path / "folder.txt")
