"""The page: whole, self-contained, and never half-written."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fewstep.bench.report import page, plots
from fewstep.errors import MachineError
from tests.bench import synthetic


class Tags(HTMLParser):
    """Every open tag must be closed, and every address looked at."""

    void = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in self.void:
            self.open.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href", "xlink:href") and value]

    def handle_startendtag(self, tag, attrs) -> None:
        self.addresses += [value for key, value in attrs if key in ("src", "href", "xlink:href") and value]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html() -> str:
    return page.render(synthetic.report(), synthetic.pictures())


def test_it_asks_the_network_for_nothing(html) -> None:
    tags = Tags()
    tags.feed(html)
    assert not tags.open
    assert tags.addresses
    assert all(address.startswith(("data:", "#")) for address in tags.addresses)
    assert not re.search(r"@import|<script|url\((?!#)", html)


def test_it_shows_what_was_measured(html) -> None:
    made = synthetic.report()
    for text in (
        "47.0×",
        "94%",
        "A made-up CPU",
        "fewstep demo --out &#39;my report&#39;",
        "torch 0.0",
        "no 8-bit dot product",
    ):
        assert text in html
    assert html.count('<img alt="') == len(made.rows) * len(made.prompts)
    assert html.count('class="cell wrong"') == len(made.rows)
    assert all(prompt in html for prompt in made.prompts)
    assert html.count("<svg") == 2


def test_rows_that_lose_are_said_to(html) -> None:
    assert "<b>teacache</b> loses to fewer steps: " in html
    assert "<b>4-step student + precision + teacache</b> adds no speed: " in html
    assert "<b>precision</b> loses" not in html


def test_without_a_task_there_is_no_oracle(html) -> None:
    rows = (
        synthetic.row("baseline", "baseline", 100, 1, None, None, 100),
        synthetic.row("precision", "alone", 100, 1.5, None, None, 40),
    )
    noise = synthetic.report().noise.model_copy(update={"real_frechet": None})
    bare = page.render(synthetic.report(task=None, rows=rows, solvers_tried={}, noise=noise), {})
    assert "Fréchet" not in bare
    assert "cell wrong" not in bare
    assert "40.0 dB" in bare


def test_text_of_the_report_can_not_become_markup() -> None:
    assert "<b>x" not in page.render(synthetic.report(model="<b>x"), {})


def test_the_folder_appears_whole(tmp_path) -> None:
    page.write(synthetic.report(), synthetic.pictures(), tmp_path / "demo")
    assert {p.name for p in (tmp_path / "demo").iterdir()} == {
        "report.json",
        "report.html",
        "waterfall.png",
        "pictures",
    }
    assert Image.open(tmp_path / "demo" / "waterfall.png").size[0] > 1000
    shown = tmp_path / "demo" / "pictures" / "4-steps-best-solver-unipc" / "0.png"
    saved = np.asarray(Image.open(shown)) / 255
    assert np.abs(saved - synthetic.pictures()["4 steps, best solver (unipc)"][0]).max() < 1 / 255


def test_a_failure_leaves_the_older_report(tmp_path, monkeypatch) -> None:
    page.write(synthetic.report(), {}, tmp_path / "demo")
    before = (tmp_path / "demo" / "report.html").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    for failure, error in ((full, MachineError), (stopped, KeyboardInterrupt)):
        monkeypatch.setattr(plots, "save_png", failure)
        with pytest.raises(error):
            page.write(synthetic.report(title="new"), {}, tmp_path / "demo")
        assert (tmp_path / "demo" / "report.html").read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["demo"]


def test_frames_are_shown_by_the_middle_one(tmp_path) -> None:
    frames = np.zeros((1, 3, 4, 4, 3))
    frames[0, 1] = 1
    page.write(synthetic.report(), {"baseline": frames}, tmp_path / "r")
    assert np.asarray(Image.open(tmp_path / "r" / "pictures" / "baseline" / "0.png")).min() == 255


@pytest.mark.parametrize(("value", "text"), [(7.516, "7.52 s"), (0.1821, "182 ms"), (0.00984, "9.84 ms")])
def test_seconds(value, text) -> None:
    assert page.seconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.871, "0.87×"), (42.31, "42.3×"), (118.2, "118×")])
def test_factor(value, text) -> None:
    assert plots.factor(value) == text


def test_facts_are_readable() -> None:
    assert page.facts({"skipped": ["a", "b"], "bytes": 1.25}) == "skipped: a, b, bytes: 1.25"
    assert page.facts([]) == "none"
    assert page.facts(True) == "true"
