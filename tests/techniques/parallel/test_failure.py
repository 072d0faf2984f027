"""A process that dies takes the others with it, soon; and so does Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
import torch
import fewstep
from fewstep.techniques.parallel.processes import joined
from tests.models.tiny import PIPELINES

torch.set_num_threads(1)
with joined() as (rank, size):
    pipe, call = PIPELINES["wan"]()
    pipe.set_progress_bar_config(disable=True)
    fast = fewstep.accelerate(pipe, [fewstep.Parallel(ulysses=2)])
    seen = []

    def step(pipe, index, t, kwargs):
        seen.append(index)
        if len(seen) == 3 and rank == 1:
            if sys.argv[1] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if sys.argv[1] == "memory":
                raise MemoryError("no memory is left for 3 GB")
        if len(seen) == 3 and rank == 0:
            print("running", flush=True)
        return kwargs

    fast(**{**call, "num_inference_steps": 5000}, output_type="latent", callback_on_step_end=step)
"""
SOON = 30  # seconds


@pytest.fixture
def started(tmp_path: Path):
    """Starts two processes by torchrun; those that are left at the end are killed."""
    (tmp_path / "work.py").write_text(SCRIPT)
    children: list[subprocess.Popen[str]] = []

    def start(way: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        children.append(
            subprocess.Popen(
                [*command, str(tmp_path / "work.py"), way], env=environment, start_new_session=True, **pipes
            )
        )
        return children[-1]

    yield start
    for child in children:
        if alive(child.pid):
            os.killpg(child.pid, signal.SIGKILL)


def alive(group: int) -> bool:
    """Whether a process of this group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def until_running(child: subprocess.Popen[str]) -> str:
    lines = []
    assert child.stdout is not None
    for line in child.stdout:
        lines.append(line)
        if line.startswith("running"):
            break
    return "".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "said"), [("killed", "exitcode: -9"), ("memory", "no memory is left for 3 GB")])
def test_one_that_dies_ends_all_and_says_why(started, way: str, said: str) -> None:
    child = started(way)
    text = until_running(child)
    begin = time.monotonic()
    rest, _ = child.communicate(timeout=2 * SOON)
    assert time.monotonic() - begin < SOON
    assert child.returncode
    assert said in text + rest
    assert not alive(child.pid)


@pytest.mark.slow
def test_ctrl_c_leaves_no_process(started) -> None:
    child = started("stopped")
    until_running(child)
    os.killpg(child.pid, signal.SIGINT)
    child.communicate(timeout=SOON)
    time.sleep(0.5)
    assert not alive(child.pid)
