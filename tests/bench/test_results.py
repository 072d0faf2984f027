"""What a benchmark leaves behind."""

from __future__ import annotations

from fewstep.bench import results
from fewstep.files import read_json


def test_a_benchmarks_file_says_what_it_ran_on(tmp_path) -> None:
    path = results.save("x", [{"seconds": 1.5}], tmp_path / "out")
    assert path == tmp_path / "out" / "x.json"
    saved = read_json(path)
    assert set(saved) == {"name", "command", "device", "versions", "threads", "rows"}
    assert saved["rows"] == [{"seconds": 1.5}]
    assert saved["versions"]["torch"]
