"""The manifest file: written, read back, and refused in one sentence where it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.errors import InputError
from fewstep.files import write_json
from fewstep.models.manifest import FILE, Manifest, manifest_of

FULL = Manifest(
    name="shapes-4step",
    call={"height": 64, "negative_prompt": ""},
    steps=4,
    times=(1.0, 0.75, 0.5, 0.25, 0.0),
    sampler="euler",
    guidance_inside=True,
    teacher="shapes",
    shares={"vae": "../shapes/vae"},
    made_by={"steps": 10},
)


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    FULL.write(tmp_path)
    assert Manifest.read(tmp_path) == FULL


def test_a_folder_may_have_none(tmp_path: Path) -> None:
    assert Manifest.read(tmp_path) is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "must be a JSON object with a 'name'"),
        ({"call": {}}, "must be a JSON object with a 'name'"),
        ({"name": "a", "stepps": 4}, "The 'stepps' of .* must be one of name, call, "),
        ({"name": "a", "call": 3}, "The 'call' of .* must be a JSON object. Got 3."),
        ({"name": "a", "times": "abc"}, "The 'times' of .* must be a list of numbers"),
    ],
)
def test_a_wrong_one_is_refused(tmp_path: Path, value: object, message: str) -> None:
    write_json(tmp_path / FILE, value)
    with pytest.raises(InputError, match=message):
        Manifest.read(tmp_path)


def test_an_object_from_elsewhere_has_none() -> None:
    assert manifest_of(object()) is None
