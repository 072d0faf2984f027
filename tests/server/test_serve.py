"""The command line, and a whole server in its own process that is killed."""

from __future__ import annotations

import random
import signal
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fewstep.server.config import read_keys
from fewstep.server.keys import find
from tests.cli.conftest import Fewstep
from tests.server.running import Process, free_port, until

MODELS = """
models:
  - {name: shapes, model: "zoo:shapes-1step"}
  - {name: moving, model: "zoo:moving-shapes", call: {num_inference_steps: 2}}
"""


def test_keys_are_shown_once_and_kept_as_hashes(fewstep: Fewstep, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    first = fewstep("keys", "add", "ann", "--file", file, "--requests-per-minute", 60)
    second = fewstep("keys", "add", "bob", "--file", file)
    assert first.code == second.code == 0
    assert first.out != second.out
    entries = read_keys(file)
    assert [entry.name for entry in entries] == ["ann", "bob"]
    assert entries[0].requests_per_minute == 60
    assert find(first.out.strip(), entries) == entries[0]
    assert first.out.strip() not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "already" in fewstep("keys", "add", "ann", "--file", file).refusal


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["zoo:none"], "The zoo has no 'none'"),
        (["zoo:shapes-1step", "--host", "0.0.0.0"], "Without --keys"),
        (["zoo:shapes-1step", "--queue", "0"], "--queue"),
        (["zoo:shapes-1step", "--keep", "0"], "--keep"),
        (["zoo:moving-shapes-live", "--viewers", "0"], "--viewers"),
        (["zoo:shapes-1step", "--keys", "none.yaml"], "There is no file none.yaml"),
        (["none.yaml"], "There is no file none.yaml"),
    ],
)
def test_what_can_t_be_served_is_refused(fewstep: Fewstep, options: list[str], said: str) -> None:
    assert said in fewstep("serve", *options).refusal


def test_a_recipe_that_does_not_fit_ends_the_server(fewstep: Fewstep, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("techniques: [{few_step: {student: 'zoo:moving-shapes'}}]")
    line = ["serve", "zoo:shapes-1step", "--recipe", tmp_path / "wrong.yaml", "--folder", tmp_path / "s", "--port", 0]
    ran = fewstep(*line)
    assert ran.code == 2
    assert "error: zoo:shapes-1step: zoo:moving-shapes can't be used as a student" in ran.err


@pytest.mark.parametrize("package", ["av", "fastapi", "prometheus_client", "python_multipart", "uvicorn"])
def test_a_package_that_is_missing_is_named(fewstep: Fewstep, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    refusal = fewstep("serve", "zoo:shapes-1step").refusal
    assert refusal == f"The server needs the package {package!r}: pip install 'fewstep[serve]'."


def test_help_has_an_example(fewstep: Fewstep) -> None:
    assert "Example: fewstep serve" in fewstep("serve", "--help").out
    assert "Example: fewstep keys add" in fewstep("keys", "add", "--help").out


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    (tmp_path / "models.yaml").write_text(MODELS)
    made = Process(tmp_path / "models.yaml", tmp_path / "served", free_port())
    made.start()
    yield made
    made.end()


def ask(process: Process) -> str:
    body = {"prompt": "a red ring", "fewstep": {"steps": 6}}
    return str(httpx.post(f"{process.url}/v1/videos", json=body, timeout=30).raise_for_status().json()["id"])


def kill_and_restart(process: Process, times: int) -> None:
    """Jobs are asked for and the server is killed, over and over; in the end each was made, once, and whole."""
    chance, asked, completed = random.Random(1), [], {}
    for _ in range(times):
        until(lambda: process.answers("/ready"), 60)
        asked += [ask(process) for _ in range(3)]
        time.sleep(chance.uniform(0.2, 1.2))
        for id in asked:
            video = httpx.get(f"{process.url}/v1/videos/{id}", timeout=30).json()
            if video["status"] == "completed":
                completed.setdefault(id, video["completed_at"])
        process.end()
        process.start()
    until(lambda: process.answers())
    for id in asked:

        def done(id: str = id) -> bool:
            status = httpx.get(f"{process.url}/v1/videos/{id}", timeout=30).json()["status"]
            assert status in ("queued", "in_progress", "completed")
            return bool(status == "completed")

        until(done, 120)
        assert httpx.get(f"{process.url}/v1/videos/{id}/content").content[4:8] == b"ftyp"
        if id in completed:  # before a kill, and not made again after it
            assert httpx.get(f"{process.url}/v1/videos/{id}").json()["completed_at"] == completed[id]
    files = {place.stem for place in (process.folder / "results").iterdir()}
    assert files == set(asked)


@pytest.mark.slow
def test_a_killed_server_goes_on_where_it_was(process: Process) -> None:
    kill_and_restart(process, 5)
    assert process.process
    process.end(signal.SIGTERM)
    assert process.process.returncode in (0, -signal.SIGTERM)
