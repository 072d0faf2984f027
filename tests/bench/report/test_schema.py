"""report.json: there and back, and refused when it is something else."""

from __future__ import annotations

import json

import pytest

from fewstep.bench.report.schema import Report
from fewstep.errors import InputError
from tests.bench.synthetic import report, row

FIELDS = (
    "name nfe seconds speedup denoiser_seconds peak_memory_mb "
    "prompt_accuracy frechet psnr ssim diversity engaged verdict"
)


def test_it_comes_back_as_it_was(tmp_path) -> None:
    made = report()
    made.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == made


def test_every_row_has_what_is_promised(tmp_path) -> None:
    report().save(tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text())
    assert read["version"] == 1
    assert all(set(FIELDS.split()) <= set(one) for one in read["rows"])


@pytest.mark.parametrize(
    ("change", "place"), [({"version": 2}, "version"), ({"rows": [{"name": "x"}]}, "rows.0"), ({"other": 1}, "other")]
)
def test_what_is_no_report_is_refused_with_the_place(tmp_path, change, place) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report().model_dump(mode="json") | change))
    with pytest.raises(InputError, match=place):
        Report.load(path)


def test_a_row_is_found_by_name() -> None:
    assert report().row("4 steps").nfe == 8
    with pytest.raises(InputError, match="'5 steps'"):
        report().row("5 steps")


def test_the_best_row_keeps_the_accuracy() -> None:
    assert report().best.speedup == 47  # 112× answers too few prompts
    assert report().fastest.speedup == 112
    rows = (row("baseline", "baseline", 100, 1, None, None, 100), row("a", "alone", 100, 3, None, None, 30))
    assert report(task=None, rows=rows).best.name == "a"
    assert report(task=None, rows=rows[:1]).best.name == "baseline"
