"""Folders and tables of pictures with captions: what they hold, in which order, and what is wrong in one sentence."""

from __future__ import annotations

import importlib.util
import json

import pytest
from PIL import Image

from fewstep.distill.data.captions import Table, folder, source_of
from fewstep.errors import InputError, MachineError


def picture(path, colour=(200, 30, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    return path


@pytest.fixture
def pictures(tmp_path):
    for name in ("b.png", "a.JPG", "deep/c.webp"):
        picture(tmp_path / name).with_suffix(".txt").write_text(f" {name} \n")
    picture(tmp_path / ".hidden.png")
    return tmp_path


def read(source):
    return [(one.media.name, one.caption) for one in source.read(range(len(source)))]


def test_texts_beside_their_files(pictures):
    whole = source_of(pictures)
    assert read(whole) == [("a.JPG", "a.JPG"), ("b.png", "b.png"), ("c.webp", "deep/c.webp")]
    assert read(source_of(str(pictures), samples=2)) == read(whole)[:2]
    assert whole.early == 3
    with pytest.raises(InputError, match=r"'samples' of .* must be from 1 to the 3 that it holds"):
        source_of(pictures, samples=4)


def test_metadata_gives_order_and_may_name_a_file_twice(pictures):
    rows = [("deep/c.webp", "one"), ("a.JPG", ""), ("b.png", "two, with a comma"), ("b.png", "three")]
    wanted = [("c.webp", "one"), ("a.JPG", ""), ("b.png", "two, with a comma"), ("b.png", "three")]
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    (pictures / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
    assert read(source_of(pictures)) == wanted
    (pictures / "metadata.jsonl").unlink()
    (pictures / "metadata.csv").write_text(
        "file_name,said\n" + "".join(f'{name},"{text}"\n' for name, text in rows), encoding="utf-8-sig"
    )
    assert read(source_of(pictures, caption="said")) == wanted
    with pytest.raises(InputError, match=r"^Line 2 of .*metadata.csv, of the column 'text', has no caption"):
        source_of(pictures)


def test_what_is_wrong_is_named(pictures):
    (pictures / "b.txt").unlink()
    with pytest.raises(InputError, match=r"^.*b\.png has no caption: there is neither b\.txt beside it nor"):
        folder(pictures)
    metadata = pictures / "metadata.jsonl"
    for text, message in {
        '{"file_name": "none.png", "text": "x"}': r"^Line 1 of .*metadata\.jsonl names the file none\.png, which",
        '\n{"text": "x"}': r"^Line 2 of .*metadata\.jsonl has no 'file_name'",
        "[1]": r"^Line 1 of .*metadata\.jsonl has no 'file_name'",
        '{"file_name": "b.png", "text": "x"}': r"a\.JPG has no caption: .*metadata\.jsonl does not name it",
        '{"file_name": "b.png", "text": 3}': r"^Line 1 of .* has no caption: it must be text\. Got 3",
        "{": r"^.*metadata\.jsonl can't be read: ",
    }.items():
        metadata.write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            folder(pictures)
        assert "\n" not in str(caught.value)
    (pictures / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(InputError, match=r"has both metadata\.jsonl and metadata\.csv"):
        folder(pictures)
    (pictures / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no pictures or videos: it must have \.jpeg, "):
        source_of(pictures / "empty")
    with pytest.raises(InputError, match=r"There is no folder \./none"):
        source_of("./none")


def test_facts_change_with_files_and_captions(pictures):
    facts = folder(pictures).facts
    assert folder(pictures).facts == facts
    picture(pictures / "b.png", (1, 2, 3)).open("ab").write(b"0")
    changed = folder(pictures).facts
    (pictures / "b.txt").write_text("other")
    assert [a == b for a, b in zip(facts.values(), changed.values(), strict=True)] == [False, True]
    assert folder(pictures).facts["captions_sha256"] != facts["captions_sha256"]


ROWS = [{"image": Image.new("RGB", (8, 8), (i, 0, 0)), "text": f"row {i}"} for i in range(6)]


class Stream:
    """Rows in order only, as a streamed data set gives them; counts how often it began."""

    def __init__(self, rows, begun=None):
        self.rows, self.begun = rows, [] if begun is None else begun

    def __iter__(self):
        self.begun.append(len(self.rows))
        return iter(self.rows)

    def skip(self, n):
        return Stream(self.rows[n:], self.begun)


@pytest.mark.parametrize("rows", [ROWS, Stream(ROWS)], ids=["numbered", "streamed"])
def test_rows_of_a_table_come_by_number(rows):
    table = Table(rows, "mine", samples=6)
    for some in (range(2), range(2, 5), range(1, 3), range(6)):
        found = list(table.read(some))
        assert [one.caption for one in found] == [f"row {i}" for i in some]
        assert [one.media.getpixel((0, 0))[0] for one in found] == list(some)
        assert found[0].name == f"Sample {some[0]} of mine"


def test_a_stream_begins_again_only_to_go_back():
    stream = Stream(ROWS)
    table = Table(stream, "mine", samples=5)
    for some in (range(2), range(2, 4), range(4, 5), range(1, 3)):
        list(table.read(some))
    assert stream.begun == [6, 5]


def test_bad_tables_are_one_sentence():
    with pytest.raises(InputError, match=r"^mine is streamed, which does not tell its length: say how many 'samples'"):
        Table(Stream(ROWS), "mine")
    with pytest.raises(InputError, match=r"^mine ends after 6 samples, and 7 were asked for"):
        list(Table(Stream(ROWS), "mine", samples=7).read(range(7)))
    with pytest.raises(InputError, match=r"^Sample 0 of mine has no column 'caption': it has image, text"):
        list(Table(ROWS, "mine", caption="caption").read(range(1)))
    with pytest.raises(InputError, match=r"^Sample 0 of mine has no caption: it must be text. Got None"):
        list(Table([{"image": None, "text": None}], "mine").read(range(1)))
    with pytest.raises(InputError, match=r"'samples' of mine must be from 1 to the 6"):
        Table(ROWS, "mine", samples=7)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="datasets is installed")
def test_without_its_extra_a_data_set_is_one_sentence():
    with pytest.raises(MachineError, match=r"^A Hugging Face data set needs .*: pip install 'fewstep\[data\]'\.$"):
        source_of("owner/name", samples=3)


def test_a_saved_data_set_is_read_by_number(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS[:2])}).save_to_disk(tmp_path / "dict")
    assert [one.caption for one in source_of(tmp_path / "one").read(range(3, 5))] == ["row 3", "row 4"]
    assert len(source_of(tmp_path / "dict", split="test")) == 2
    with pytest.raises(InputError, match=r"Could not open the data set .*, split 'train'"):
        source_of(tmp_path / "dict")
