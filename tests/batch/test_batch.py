"""Batches of the zoo's models by real workers: from a file of prompts to a folder of pictures."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import fewstep as library
from fewstep.batch.crew import Crew
from fewstep.batch.prompts import Request
from fewstep.batch.run import run
from fewstep.errors import InputError
from fewstep.media import FPS
from tests.cli.conftest import Fewstep, fewstep  # noqa: F401

pytestmark = pytest.mark.usefixtures("ray_here")
MODEL = "zoo:shapes-1step"
COLOURS = ("red", "blue", "green", "yellow", "white")


def requests(count: int) -> list[Request]:
    return [Request(i + 1, f"a large {COLOURS[i % 5]} ring", i) for i in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".png"}


def write(path: Path, *lines: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@contextmanager
def killing(folder: Path, when: int) -> Iterator[list[int]]:
    """Kill one of the workers, the first that wrote something, once so many files are there."""
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            written = sorted(folder.glob("*.png.json"), key=lambda path: path.stat().st_mtime)
            if len(written) >= when:
                killed.append(json.loads(written[0].read_text())["pid"])
                os.kill(killed[0], signal.SIGKILL)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def test_from_the_command_line(fewstep: Fewstep, tmp_path: Path) -> None:  # noqa: F811
    line = {"prompt": "a large red ring", "seed": 7}
    lines = [{**line, "id": "one"}, {"prompt": "a blue square", "steps": 2}, {**line, "id": "two"}]
    prompts = write(tmp_path / "p.jsonl", *lines, {"prompt": "a red ring", "frames": 3})
    command = ["batch", prompts, "-o", tmp_path / "out", "--model", MODEL, "--json"]

    ran = fewstep(*command)
    assert ran.code == 1
    assert "failed: line 4: FluxPipeline takes no 'frames': leave it out." in ran.err
    facts = ran.json
    assert {name: facts[name] for name in ("lines", "outputs", "made", "there_before", "lines_failed")} == {
        "lines": 4,
        "outputs": 3,
        "made": 2,
        "there_before": 0,
        "lines_failed": [4],
    }
    rows = index(tmp_path / "out")
    assert [row["state"] for row in rows] == ["made", "made", "made", "failed"]
    assert rows[0]["file"] == rows[2]["file"] != rows[1]["file"]
    assert set(contents(tmp_path / "out")) == {rows[0]["file"], rows[1]["file"]}
    metadata = json.loads((tmp_path / "out" / f"{rows[0]['file']}.json").read_text())
    assert (metadata["prompt"], metadata["seed"], metadata["model"]) == ("a large red ring", 7, MODEL)
    assert metadata["seconds"] > 0

    pipe = library.load(MODEL)
    pipe.set_progress_bar_config(disable=True)
    alone = pipe("a large red ring", generator=torch.Generator().manual_seed(7)).images[0]
    assert difference(alone, Image.open(tmp_path / "out" / rows[0]["file"])) <= 1

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png*")}
    write(prompts, *lines)
    again = fewstep(*command)
    assert (again.code, again.json["made"], again.json["there_before"]) == (0, 0, 2)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png*")} == times


def test_a_worker_killed_in_mid_run_changes_nothing(tmp_path: Path) -> None:
    wanted = requests(30)
    run(wanted, tmp_path / "calm", MODEL, crew=Crew(threads=1), show=False)
    with killing(tmp_path / "hit", when=6) as killed:
        report = run(wanted, tmp_path / "hit", MODEL, crew=Crew(workers=2, threads=1), show=False)
    assert killed
    assert report.replaced == 1
    assert (report.made, report.failures) == (30, {})
    assert contents(tmp_path / "hit") == contents(tmp_path / "calm")
    assert len(contents(tmp_path / "hit")) == 30


@pytest.mark.slow
def test_companions_do_not_matter(tmp_path: Path) -> None:
    wanted = requests(7)
    run(wanted, tmp_path / "alone", MODEL, crew=Crew(), show=False)
    report = run(wanted, tmp_path / "together", MODEL, crew=Crew(batch=3), show=False)
    alone, together = contents(tmp_path / "alone"), contents(tmp_path / "together")
    assert set(alone) == set(together)
    assert report.made == 7
    for name in alone:
        assert difference(Image.open(tmp_path / "alone" / name), Image.open(tmp_path / "together" / name)) <= 3


@pytest.mark.slow
def test_clips(fewstep: Fewstep, tmp_path: Path) -> None:  # noqa: F811
    prompts = write(tmp_path / "p.jsonl", {"prompt": "a red ring moving left", "frames": 5, "guidance": 2.0})
    command = ["batch", prompts, "-o", tmp_path / "out", "--model", "zoo:moving-shapes", "--steps", 1, "--json"]
    assert "must be gif or webp or mp4 for clips" in fewstep(*command, "--format", "png").refusal
    assert fewstep(*command).json["made"] == 1
    (clip,) = (tmp_path / "out").glob("*.webp")
    # Two equal frames, one after the other, are one that is shown for longer.
    assert sum(duration(frame) for frame in ImageSequence.Iterator(Image.open(clip))) == 5 * (1000 // FPS)


@pytest.mark.slow
def test_a_cache_that_calibrates_itself_gives_the_same_everywhere(tmp_path: Path) -> None:
    recipe = [{"cache": {"preset": "teacache", "threshold": 0.4}}]
    wanted = [Request(r.line, r.prompt, r.seed, None, {"steps": 8}) for r in requests(4)]
    report = run(wanted, tmp_path / "one", "zoo:shapes", recipe, crew=Crew(threads=1), show=False)
    assert report.engaged["cache"]
    run(wanted[::-1], tmp_path / "other", "zoo:shapes", recipe, crew=Crew(workers=2, batch=4), show=False)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


@pytest.mark.slow
def test_two_processes_share_each_call(tmp_path: Path) -> None:
    wanted, crew = requests(2), Crew(workers=1, threads=1)
    run(wanted, tmp_path / "one", MODEL, crew=crew, show=False)
    report = run(wanted, tmp_path / "two", MODEL, [{"parallel": {"ulysses": 2}}], crew=crew, show=False)
    assert report.engaged["parallel"]["processes"] == 2
    assert report.made == 2
    for one, two in zip(index(tmp_path / "one"), index(tmp_path / "two"), strict=True):
        assert one["file"] != two["file"]
        assert difference(Image.open(tmp_path / "one" / one["file"]), Image.open(tmp_path / "two" / two["file"])) <= 3


@pytest.mark.parametrize(
    ("recipe", "group", "why"),
    [([], 2, "have nothing to share"), ([{"parallel": "auto"}], 1, "'group' of a batch must be at least 2")],
)
def test_groups_that_do_not_fit_the_recipe(tmp_path: Path, recipe: list[object], group: int, why: str) -> None:
    with pytest.raises(InputError, match=why):
        run(requests(1), tmp_path / "out", MODEL, recipe, crew=Crew(group=group), show=False)
    assert not (tmp_path / "out").exists()


def index(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def duration(frame: Image.Image) -> int:
    frame.load()  # which is when it is known
    return int(frame.info["duration"])


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max())
