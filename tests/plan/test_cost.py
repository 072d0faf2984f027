"""Bytes counted by hand, and what must hold of every prediction."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.layout import Layout
from fewstep.plan import traffic
from fewstep.plan.cost import COMPILED, EAGER, KERNEL, decoding, encoding, memory, predict, reach
from fewstep.plan.layouts import candidates
from fewstep.plan.machines import Cluster, Device, devices
from fewstep.plan.read import network_of
from fewstep.plan.traffic import Traffic
from fewstep.plan.work import work_of
from tests.plan.conftest import tiny

ONE = Layout()
# 10 tokens of 8 numbers of 2 bytes are 160 bytes; the prediction is 8 tokens of 3 numbers: 48 bytes.
BYTES = [
    (traffic.ulysses, Layout(ulysses=2), Traffic(4 * 1 / 2 * 80, 4)),
    (traffic.ulysses, Layout(ulysses=4), Traffic(4 * 3 / 4 * 40, 4)),
    (traffic.ulysses, Layout(ulysses=2, tensor=2), Traffic(4 * 1 / 2 * 40, 4)),
    (traffic.ring, Layout(ring=4), Traffic(3 * 2 * 40, 3)),
    (traffic.ring, Layout(ring=2, ulysses=2), Traffic(1 * 2 * 40, 1)),
    (traffic.tensor, Layout(tensor=2), Traffic(2 * 2 * 1 / 2 * 160, 2)),
    (traffic.tensor, Layout(tensor=4, ring=2), Traffic(2 * 2 * 3 / 4 * 80, 2)),
    (traffic.gather, Layout(ring=2, ulysses=2), Traffic(3 / 4 * 160, 1)),
    (traffic.guidance, Layout(guidance=2), Traffic(48, 1)),
]


@pytest.mark.parametrize(("way", "layout", "expected"), BYTES)
def test_bytes_by_hand(way, layout: Layout, expected: Traffic) -> None:
    assert way(tiny(), layout, 1) == expected
    assert way(tiny(), layout, 3).bytes == 3 * expected.bytes
    assert way(tiny(), ONE, 1) == Traffic(0, 0)


def test_bytes_of_the_decoded_picture() -> None:
    assert traffic.decoded(tiny(), Layout(ulysses=4, vae=4)) == Traffic(3 / 4 * 32 * 3 * 2, 1)


def test_one_process_computes_and_sends_nothing(device: Device) -> None:
    work = tiny(branches=1)
    prediction = predict(work, Cluster(device), ONE, COMPILED)
    matrices, attention = 2 * 512 * 10 / 1e6, 4 * 8 * 100 / 1e6
    passes = (COMPILED.outer + COMPILED.inner) * 80 * 2 / (1e9 * 0.8)
    assert prediction.compute == pytest.approx(matrices + attention + passes + COMPILED.kernels * KERNEL)
    assert prediction.moved == prediction.exposed == prediction.hidden == 0
    assert prediction.denoising == pytest.approx(work.steps * prediction.compute)
    assert prediction.seconds == prediction.denoising + prediction.decoding + prediction.encoding
    assert prediction.encoding == pytest.approx(2 * 100 * 2 / 1e6)
    assert prediction.decoding == pytest.approx(32 * 10 / (1e6 * 0.1))


def test_two_branches_take_twice_the_time_of_one(device: Device) -> None:
    one, two = (predict(tiny(branches=branches), Cluster(device), ONE) for branches in (1, 2))
    assert two.denoising == pytest.approx(2 * one.denoising)
    shared = predict(tiny(), Cluster(device, 2), Layout(guidance=2))
    assert shared.compute == pytest.approx(one.compute)
    assert shared.sent == {"guidance": 48, "ring": 0, "ulysses": 0, "tensor": 0, "gather": 0}
    assert shared.exposed == pytest.approx(48 / (1e9 * 0.7) + 1e-6)


def test_data_needs_no_exchange(device: Device) -> None:
    prediction = predict(tiny(batch=4), Cluster(device, 4), Layout(data=4))
    assert prediction.moved == 0
    assert prediction.denoising == pytest.approx(predict(tiny(), Cluster(device), ONE).denoising)


def test_memory_of_a_tiny_layout() -> None:
    held = memory(tiny(), ONE, 2, encoders=True)
    assert held["denoiser"] == 1024 * 2
    assert held["text encoders"] == 100 * 2
    assert memory(tiny(), Layout(tensor=4), 2, encoders=False)["denoiser"] == 1024 * 2 / 4
    assert memory(tiny(), Layout(tensor=4), 2, encoders=False)["text encoders"] == 0
    assert memory(tiny(), Layout(ulysses=4), 2, encoders=True)["denoiser"] == held["denoiser"]


def test_where_groups_lie() -> None:
    layout = Layout(data=2, guidance=2, ring=3, ulysses=4, tensor=5, vae=8)
    reaches = {way: reach(layout, way) for way in ("tensor", "ulysses", "ring", "gather", "guidance", "vae")}
    assert reaches == {"tensor": 5, "ulysses": 20, "ring": 60, "gather": 60, "guidance": 120, "vae": 8}


def test_several_nodes_are_no_faster_than_one(device: Device) -> None:
    for layout in candidates(tiny(batch=2), 8):
        inside, across = (predict(tiny(), Cluster(device, 8 // n, n), layout) for n in (1, 2))
        assert across.seconds >= inside.seconds * (1 - 1e-9)
        assert across.moved == inside.moved


@given(st.sampled_from(candidates(tiny(batch=2), 16)), st.floats(1, 1e3), st.sampled_from([EAGER, COMPILED]))
def test_what_is_faster_is_never_slower(layout: Layout, factor: float, mode) -> None:
    base = devices()["l20"]
    work, slow = tiny(batch=2), predict(tiny(batch=2), Cluster(base, 16), layout, mode)
    for name in ("link", "tflops", "memory_bandwidth"):
        fast = base.model_copy(update={name: getattr(base, name) * factor})
        assert predict(work, Cluster(fast, 16), layout, mode).seconds <= slow.seconds * (1 + 1e-9)


@given(st.integers(1, 64), st.integers(1, 4))
def test_more_work_takes_longer(steps: int, times: int) -> None:
    network, cluster = network_of("flux.1-dev"), Cluster(devices()["h100"], 4)
    work, layout = work_of(network, steps=steps), Layout(ulysses=4)
    first, more = predict(work, cluster, layout), predict(work_of(network, steps=steps * times), cluster, layout)
    assert more.denoising == pytest.approx(times * first.denoising)
    larger = predict(work_of(network, steps=steps, height=1024 * times), cluster, layout)
    assert larger.seconds >= first.seconds
    assert larger.need >= first.need


def test_a_ring_hides_what_attention_leaves_time_for() -> None:
    work, l20 = work_of(network_of("hunyuan-video")), devices()["l20"]
    long = predict(work, Cluster(l20, 4), Layout(ring=4))
    assert long.exposed - long.sending["gather"] < 0.01 * long.sending["ring"]
    slow = l20.model_copy(update={"link": 0.1})
    assert predict(work, Cluster(slow, 4), Layout(ring=4)).exposed > 0.9 * long.sending["ring"] * 320


def test_the_host_may_be_what_a_step_waits_for() -> None:
    work, cluster = work_of(network_of("flux.1-dev")), Cluster(devices()["h100"], 8)
    eager, compiled = (predict(work, cluster, Layout(ulysses=8), mode) for mode in (EAGER, COMPILED))
    assert eager.launching > 0.5 * eager.compute
    assert compiled.seconds < eager.seconds


def test_decoding_in_parts() -> None:
    work, cluster = work_of(network_of("wan2.1-14b"), batch=2), Cluster(devices()["h100"], 8)
    times = [decoding(work, cluster, Layout(ulysses=8, vae=parts)) for parts in (1, 2, 4, 8)]
    assert times == sorted(times, reverse=True)
    assert decoding(work, cluster, Layout(data=2)) == pytest.approx(times[0] / 2)
    assert encoding(replace(work, batch=4), cluster) == pytest.approx(2 * encoding(work, cluster))
