"""Files that are written aside: whole or not at all, also when the disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fewstep.errors import InputError, MachineError
from fewstep.files import read_entries, read_json, read_yaml, replacing, write_json, write_text


def fill_the_disk(path: Path) -> None:
    """Fails as a full disk does: the kernel's own error, from the device that is always full."""
    with open("/dev/full", "w") as full:
        full.write(str(path))


def test_a_file_is_replaced(tmp_path: Path) -> None:
    place = tmp_path / "new folder" / "note.txt"
    write_text(place, "old")
    write_text(place, "neu: ×")
    assert place.read_text(encoding="utf-8") == "neu: ×"
    assert os.listdir(place.parent) == ["note.txt"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    place = tmp_path / "model"
    for name in ("a", "b"):
        with replacing(place) as aside:
            aside.mkdir()
            (aside / name).write_text(name)
    assert [path.name for path in place.iterdir()] == ["b"]
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    place = tmp_path / "weights.bin"
    place.write_text("precious")
    with (
        pytest.raises(MachineError, match=r"Could not write .*weights\.bin: the disk is full"),
        replacing(place),
    ):
        fill_the_disk(place)
    assert place.read_text() == "precious"
    assert os.listdir(tmp_path) == ["weights.bin"]


@pytest.mark.parametrize("said", ["I/O error: No space left on device (os error 28)", "unexpected pos 64 vs 0"])
def test_a_full_disk_that_a_library_reports_in_its_own_error(tmp_path: Path, said: str) -> None:
    with pytest.raises(MachineError, match="the disk is full"), replacing(tmp_path / "weights.bin"):
        raise RuntimeError(said)
    assert os.listdir(tmp_path) == []


def test_an_error_of_the_block_passes_and_changes_nothing(tmp_path: Path) -> None:
    place = tmp_path / "weights.bin"
    place.write_text("precious")
    with pytest.raises(KeyError), replacing(place) as aside:
        aside.write_text("half")
        raise KeyError
    assert place.read_text() == "precious"
    assert os.listdir(tmp_path) == ["weights.bin"]


def test_a_folder_stays_when_the_new_one_cannot_take_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "model"
    place.mkdir()
    (place / "precious").touch()
    rename = os.rename

    def fails_for_the_new_one(source: Path, target: Path) -> None:
        if Path(target) == place and Path(source).name == "model":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails_for_the_new_one)
    with pytest.raises(MachineError, match="the disk is full"), replacing(place) as aside:
        aside.mkdir()
    assert [path.name for path in place.iterdir()] == ["precious"]


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"name": "Größe", "rows": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "There is no file"), (b"{", "must be a JSON file"), (b"\xff\xfe", "must be a JSON file")],
)
def test_what_is_no_json_file_is_said(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_json(path)
    with pytest.raises(InputError, match="Could not read"):
        read_json(tmp_path)


def test_yaml_comes_back_and_a_key_that_is_there_twice_is_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("base: &b {x: 1}\nrows:\n  - {<<: *b, y: [1, two]}\n")
    assert read_yaml(path) == {"base": {"x": 1}, "rows": [{"x": 1, "y": [1, "two"]}]}
    for text in ("a: 1\na: 2\n", "rows:\n  - {x: 1, y: 2, x: 3}\n"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"a\.yaml must be a YAML file: '[ax]' is there twice .*line"):
            read_yaml(path)
    path.write_text("rows: [")
    with pytest.raises(InputError, match="must be a YAML file"):
        read_yaml(path)
    with pytest.raises(InputError, match="There is no file"):
        read_yaml(tmp_path / "none.yaml")


def test_a_file_that_is_one_list_has_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("rows: [1, 2]")
    assert read_entries(path, "rows") == [1, 2]
    for text in ("rows: 1", "[1, 2]", "rows: []\nmore: 1", ""):
        path.write_text(text)
        with pytest.raises(InputError, match="must hold one list, under 'rows'"):
            read_entries(path, "rows")
