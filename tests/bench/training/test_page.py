"""The page of a run: whole, self-contained, and with all that the run wrote."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from fewstep.bench.training import page
from fewstep.bench.training.read import read_run
from fewstep.errors import InputError
from tests.bench.report.test_page import Tags
from tests.bench.training import runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return runs.whole(tmp_path_factory.mktemp("whole") / "four")


@pytest.fixture(scope="module")
def html(run):
    path = page.report(run)
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


def test_it_asks_the_network_for_nothing(html):
    tags = Tags()
    tags.feed(html)
    assert not tags.open
    assert tags.addresses
    assert all(address.startswith(("data:", "#")) for address in tags.addresses)
    assert not re.search(r"@import|<script|url\((?!#)", html)


def test_it_shows_what_the_run_wrote(html):
    for text in (
        "<h1>zoo:shapes in 4 steps</h1>",
        "1-kd finished its 1,200 steps",
        "2-dmd2 stands at step 600 of 1,200",
        "By prompt_accuracy its best step is 900",
        "loss of critic",
        "gradient norm of student",
        "back to an earlier step.",
        '<span class="verdict go-on">go on</span>',
        "40 values",
        "method dmd2",
        "Saturated: 25%",
        "&lt;b&gt;&amp;",
    ):
        assert text in html, text
    assert html.count("<svg") == 6
    assert html.count('<img alt="') == len(runs.PROMPTS) * 9
    assert html.count("class=best") == 2
    assert "<dt>name</dt>" not in html  # what was left open


def test_samples_stand_side_by_side(run):
    kd, dmd2 = read_run(run).stages
    assert [(shown.title, shown.note) for shown in page.samples(kd)] == [
        ("Teacher", "its own steps"),
        ("First", "step 300"),
        ("Middle", "step 600"),
        ("Best", "step 900"),
        ("Last", "step 1,200"),
    ]
    assert [shown.title for shown in page.samples(dmd2)] == ["Teacher", "First, best", "Middle", "Last"]
    data = base64.b64decode(page.samples(kd)[4].pictures[0].removeprefix("data:image/png;base64,"))
    picture = np.asarray(Image.open(io.BytesIO(data)))
    assert picture.shape == (256, 256, 3)  # four samples, two by two, each grown from 64 to 128 pixels
    tiles = page.read(kd.samples[1200]).tiles[0]
    np.testing.assert_array_equal(picture[128:, :128], tiles[2])


def test_videos_are_rows_of_frames(tmp_path):
    runs.losses(tmp_path, 4)
    runs.samples(tmp_path, 4, 4, frames=6)
    (stage,) = read_run(tmp_path).stages
    teacher, only = page.samples(stage)
    assert only.title == "First, last"
    data = base64.b64decode(teacher.pictures[0].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(data)).size == (380, 253)  # two samples, three frames each


def test_a_run_that_wrote_losses_alone(tmp_path):
    runs.losses(tmp_path, 40)
    html = page.report(tmp_path).read_text(encoding="utf-8")
    assert f"The training in {tmp_path.name}" in html
    assert "The run stands at step 40. No samples were measured." in html
    assert html.count("<svg") == 2
    assert "What the guard said" not in html


def test_a_run_before_its_first_step(tmp_path):
    (tmp_path / "losses.jsonl").write_text("")
    assert "No step has been taken." in page.report(tmp_path).read_text(encoding="utf-8")


def test_a_folder_that_is_no_run_gets_no_page(tmp_path):
    with pytest.raises(InputError, match="There is no training run in"):
        page.report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_values_of_a_configuration_as_people_write_them():
    assert page.plain({"a": 1, "b": None, "c": [0.5, True]}) == "a 1, c 0.5; true"
    assert page.plain(list(range(13))) == "13 values"
    assert page.plain([]) == page.plain({}) == "none"
