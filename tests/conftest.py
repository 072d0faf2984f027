"""What every test runs under: repeatable random numbers, no time limit per hypothesis example, no network. And which
tests run alone, and not several at a time: those that look at a clock, or whose threads race with others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest

from fewstep.machine import Machine

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that would download must fail at once

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")

HERE = Path(__file__).parent
ALONE = (
    "batch/test_batch.py",
    "batch/test_cluster.py",
    "batch/test_engine.py",
    "batch/test_processes.py",
    "bench/test_live.py",
    "bench/test_overhead.py",
    "bench/test_rehearsal.py",
    "bench/test_served.py",
    "bench/test_timing.py",
    "realtime",
    "server/live",
    "server/test_serve.py",
    "server/test_shared.py",
    "server/test_studio.py",
    "server/test_worker.py",
    "techniques/parallel/test_failure.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    assert all((HERE / part).exists() for part in ALONE)
    for item in items:
        if any(item.path.is_relative_to(HERE / part) for part in ALONE):
            item.add_marker("alone")


@pytest.fixture(scope="module")
def able_machine() -> Iterator[Machine]:
    """This machine, as if it were quick at bfloat16; it computes in it either way."""
    real = Machine.detect()
    able = replace(real, features=real.features | {"bf16"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fewstep.machine._detect", lambda: able)
        yield able
