"""Which layouts there are, their order, and the words on the best."""

from __future__ import annotations

from itertools import product

import pytest

from fewstep.errors import InputError
from fewstep.layout import Layout
from fewstep.plan.cost import EAGER
from fewstep.plan.explain import explain, gb, seconds
from fewstep.plan.layouts import DECODER_PARTS, alone, candidates, ranked
from fewstep.plan.machines import cluster_of
from fewstep.plan.read import network_of
from fewstep.plan.work import work_of
from tests.plan.conftest import tiny


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 6, 8, 16, 32])
def test_all_layouts_and_no_others(devices: int) -> None:
    work = tiny(batch=2)  # 4 heads, an MLP of 16, 8 image tokens, 2 branches
    parts = [Layout(*five) for five in product(range(1, devices + 1), repeat=5)] if devices <= 8 else None
    found = candidates(work, devices)
    assert all(layout.size == devices and not layout.faults() for layout in found)
    assert len(set(found)) == len(found)
    if parts:
        whole = [
            one
            for one in parts
            if one.size == devices
            and one.data in (1, 2)
            and one.guidance in (1, 2)
            and one.ulysses * one.tensor in (1, 2, 4)
            and one.sequence <= 8
        ]
        assert set(found) == set(whole)


def test_those_that_fit_come_first_and_the_fastest_of_them() -> None:
    found = ranked(work_of(network_of("flux.2-dev")), cluster_of("8xL20"), EAGER, encoders=False)
    fits = [one.fits for one in found]
    assert fits == sorted(fits, reverse=True)
    assert {True, False} == set(fits)
    for state in (True, False):
        times = [one.seconds for one in found if one.fits is state]
        assert times == sorted(times)
    assert found[0].layout == Layout(ulysses=4, tensor=2, vae=8)  # the fastest of the seven that were published


def test_guidance_comes_before_the_rest() -> None:
    best = ranked(work_of(network_of("wan2.1-14b")), cluster_of("2xB200"))[0]
    assert best.layout == Layout(guidance=2, vae=2)


def test_the_decoder_is_shared_as_far_as_it_scales() -> None:
    found = ranked(work_of(network_of("wan2.1-14b")), cluster_of("2x6xH100"))
    assert {one.layout.vae for one in found} == {6}  # the largest number of at most 8 that divides 12
    assert all(one.layout.vae <= DECODER_PARTS for one in found)
    assert not any(one.layout.faults() for one in found)


def test_what_can_not_be_cut() -> None:
    with pytest.raises(InputError, match=r"11 devices: its 4 heads, 8 image tokens.*the next number that works is 10"):
        ranked(tiny(), cluster_of("11xGB200"))
    with pytest.raises(InputError, match=r"7 devices without ring: its 24 heads.*the next number that works is 6"):
        ranked(work_of(network_of("flux.1-dev")), cluster_of("7xH100"), without=["ring"])


def test_heads_that_do_not_divide_leave_the_ring() -> None:
    work, cluster = work_of(network_of("flux.1-dev")), cluster_of("7xH100")
    found = ranked(work, cluster)
    assert [one.layout for one in found] == [Layout(ring=7, vae=7)]
    assert "The 24 heads can't be divided by 7" in explain(work, cluster, found)


@pytest.mark.parametrize("way", ["guidance", "ring", "ulysses", "tensor"])
def test_what_is_left_out(way: str) -> None:
    every, some = candidates(tiny(), 8), candidates(tiny(), 8, [way])
    assert some == [layout for layout in every if getattr(layout, way) == 1]
    assert len(some) < len(every)


def test_what_fits_in_no_layout() -> None:
    with pytest.raises(InputError, match=r"No layout of flux.2-dev fits 2xRTX4090: the smallest \(tensor 2"):
        ranked(work_of(network_of("flux.2-dev")), cluster_of("2xRTX4090"))


def test_many_devices_are_planned_in_a_moment() -> None:
    assert ranked(work_of(network_of("wan2.1-14b"), batch=4096), cluster_of("4096x8xH100"))


def test_the_paragraph_tells_what_decided() -> None:
    work, cluster = work_of(network_of("flux.2-dev")), cluster_of("8xL20")
    found = ranked(work, cluster, EAGER, encoders=False)
    text = explain(work, cluster, found, EAGER, encoders=False)
    best, one = found[0], alone(work, cluster, EAGER, encoders=False)
    for part in (
        f"Predicted best of {len(found)}: ulysses 4, tensor 2, vae 8, {seconds(best.seconds)}",
        f"{one.seconds / best.seconds:.1f} times as fast as one L20",
        "4 of the 48 heads",
        f"without it a device would need {gb(found[-1].need)}, and has {gb(best.capacity)}",
        "On 4xL20 the best would take",
    ):
        assert part in text


def test_the_paragraph_of_guidance_and_a_batch() -> None:
    work, cluster = work_of(network_of("wan2.1-1.3b"), batch=2), cluster_of("4xH100")
    text = explain(work, cluster, ranked(work, cluster), encoders=True)
    assert "The batch of 2 is cut into 2" in text
    assert "The 2 branches of guidance run side by side" in text


def test_the_paragraph_says_when_half_the_devices_are_too_few() -> None:
    work, cluster = work_of(network_of("wan2.2-14b")), cluster_of("2xH100")
    assert "On 1xH100 it would not fit." in explain(work, cluster, ranked(work, cluster), encoders=True)


@pytest.mark.parametrize(("value", "text"), [(1234.5, "1234 s"), (12.345, "12.3 s"), (0.0123, "12.3 ms")])
def test_seconds_are_readable(value: float, text: str) -> None:
    assert seconds(value) == text
