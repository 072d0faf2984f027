"""Layouts: what is a mistake in one, and which one is chosen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.layout import Layout, chosen, parts_that_fit


def test_its_size_leaves_the_decoder_out_and_its_name_what_is_not_shared() -> None:
    layout = Layout(guidance=2, ulysses=2, ring=3, vae=4)
    assert (layout.size, layout.sequence, str(layout)) == (12, 6, "guidance 2, ring 3, ulysses 2, vae 4")
    assert str(Layout()) == "one process"


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (Layout(ulysses=0), "'ulysses' of a parallel layout must be a whole number above 0. Got 0."),
        (Layout(ring=True), "'ring' of a parallel layout must be a whole number above 0. Got True."),
        (Layout(ulysses=2, vae=4), "2 processes can't decode in 4 parts"),
    ],
)
def test_a_mistake_is_one_sentence(layout: Layout, said: str) -> None:
    (fault,) = layout.faults()
    assert said in fault


@given(st.integers(1, 64), st.integers(1, 48), st.booleans(), st.booleans())
def test_the_chosen_one_uses_all_processes_and_whole_heads(
    processes: int, heads: int, guided: bool, decodes: bool
) -> None:
    layout, why = chosen(processes, heads, guided, decodes)
    assert layout.size == processes
    assert not layout.faults()
    assert heads % layout.ulysses == 0
    assert layout.guidance == (2 if guided and processes % 2 == 0 else 1)
    assert layout.vae == (processes if decodes else 1)
    assert why.endswith(".")


@given(st.integers(1, 64), st.integers(1, 48), st.floats(1, 100), st.floats(-10, 100))
def test_layers_are_cut_as_little_as_memory_asks_for(processes: int, heads: int, weights: float, room: float) -> None:
    parts = parts_that_fit(processes, heads, weights, room)
    layout, why = chosen(processes, heads, True, True, parts)
    assert (layout.size, layout.tensor) == (processes, parts)
    assert heads % (parts * layout.ulysses) == 0
    assert ("too large" in why) == (parts > 1)
    fewer = [n for n in range(1, parts) if processes % n == 0 and heads % n == 0]
    assert all(weights / n > room for n in fewer)
