"""The command as a process of its own: interrupted, killed, and on a cluster that is there already."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow
PATIENCE = 300.0  # seconds


def wait(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@contextmanager
def batch(folder: Path, *more: object) -> Iterator[subprocess.Popen[str]]:
    line = [sys.executable, "-m", "fewstep", "batch", folder / "p.txt", "-o", folder / "out", "-m", "zoo:shapes-1step"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A group of its own, so that Ctrl-C can be sent to all of it, as a terminal does.
    process = subprocess.Popen([*map(str, line), *map(str, more)], text=True, start_new_session=True, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def below(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def at_work(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for child in below(process):
        with suppress(psutil.NoSuchProcess):  # one that has just ended
            if child.name().startswith("ray::Process"):
                found.append(child)
    return found


def prompts(folder: Path, count: int) -> None:
    (folder / "p.txt").write_text("".join(f"a large red ring {i}\n" for i in range(count)))


def made(folder: Path) -> list[Path]:
    return list((folder / "out").glob("*.png"))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_in_mid_run_leaves_no_process_and_what_is_made(tmp_path: Path, how: signal.Signals) -> None:
    prompts(tmp_path, 400)
    with batch(tmp_path, "--workers", 2) as process:
        wait(lambda: len(made(tmp_path)) >= 20 and len(at_work(process)) == 2)
        children, workers = below(process), at_work(process)
        (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == (-how if how == signal.SIGKILL else 130)
    assert "Traceback" not in err
    assert out == ""
    # After a kill, two helpers of Ray's own stay for a minute.
    psutil.wait_procs(workers if how == signal.SIGKILL else children, PATIENCE)
    assert not any(child.is_running() for child in (workers if how == signal.SIGKILL else children))
    before = {path: path.stat().st_mtime_ns for path in made(tmp_path)}
    assert 20 <= len(before) < 400
    if how != signal.SIGKILL:
        rows = [json.loads(line) for line in (tmp_path / "out" / "index.jsonl").read_text().splitlines()]
        assert sum(row["state"] == "made" for row in rows) == len(before)
    prompts(tmp_path, len(before) + 3)
    with batch(tmp_path, "--json") as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert json.loads(out)["made"] + json.loads(out)["there_before"] == len(before) + 3
    assert all(path.stat().st_mtime_ns == modified for path, modified in before.items())


def test_a_cluster_at_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts(tmp_path, 3)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    head = ["start", "--head", f"--port={port}", "--num-cpus=2", "--include-dashboard=false", "--block"]
    ray = Path(sys.executable).with_name("ray")
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    cluster = subprocess.Popen([str(ray), *head], start_new_session=True, **pipes)
    try:
        wait(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
        with batch(tmp_path, "--ray", f"127.0.0.1:{port}", "--workers", 2, "--json") as process:
            out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        assert json.loads(out)["made"] == 3
        assert cluster.poll() is None
    finally:
        children = psutil.Process(cluster.pid).children(recursive=True)
        cluster.terminate()
        cluster.wait(60)
        psutil.wait_procs(children, 30)
    assert len(made(tmp_path)) == 3


def test_an_address_where_nothing_is(tmp_path: Path) -> None:
    prompts(tmp_path, 1)
    with batch(tmp_path, "--ray", "127.0.0.1:1") as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (2, "")
    assert "error: No Ray cluster answers at 127.0.0.1:1 within 15 seconds." in err
