"""A network small enough to count by hand, and a way to run a command line in this process."""

from __future__ import annotations

import pytest

from fewstep.plan.machines import Device
from fewstep.plan.work import Blocks, Decoder, Network, Work, work_of
from tests.cli.conftest import fewstep

__all__ = ["fewstep"]


def tiny(**call: int) -> Work:
    """One joint block of width 8 and 4 heads with an MLP of 16; 4x8 pixels in tokens of 2x2, two text tokens."""
    matrices = 4 * 8 * 8 + 2 * 8 * 16
    block = Blocks(count=1, image=matrices, text=matrices, weights=2 * matrices, attention=("joint",), sums=2)
    usual = {"height": 4, "width": 8, "frames": 1, "steps": 3, "branches": 2}
    network = Network("tiny", 8, 4, 16, (block,), (1, 2, 2), 3, 2, 100, Decoder(10.0, 4.0), usual)
    return work_of(network, **call)


@pytest.fixture
def device() -> Device:
    """A device of round numbers, so slow that the host is never waited for: 10⁶ operations and 10⁹ bytes a second."""
    return Device(
        name="Round",
        tflops=1e-6,
        linear=1,
        attention=1,
        memory=1,
        memory_bandwidth=1,
        link=1,
        link_latency=1,
        net=0.1,
        net_latency=10,
        node=16,
    )
