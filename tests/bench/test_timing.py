"""Timing: what counts, what is in turn, and memory that is seen."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from fewstep.bench.timing import interleaved, measured, peak_memory, speedup, spread, weights_mb
from fewstep.errors import InputError


class Slow(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return hidden_states


def test_the_denoisers_part_and_its_evaluations_are_counted() -> None:
    denoiser, x = Slow(), torch.zeros(4, 3)

    def call() -> str:
        denoiser(hidden_states=x)  # guidance in two calls ...
        denoiser(x)
        denoiser(torch.cat([x, x]))  # ... and in one of twice the batch
        time.sleep(0.03)
        return "pictures"

    result, run = measured(call, [denoiser], samples=4)
    assert result == "pictures"
    assert run.nfe == 4
    assert 0.06 <= run.denoiser_seconds <= run.seconds - 0.03


def test_measuring_leaves_the_module_as_it_was() -> None:
    denoiser = Slow()
    with pytest.raises(ZeroDivisionError):
        measured(lambda: 1 / 0, [denoiser], samples=1)
    assert "forward" not in denoiser.__dict__


def test_no_samples_are_refused() -> None:
    with pytest.raises(InputError, match="samples"):
        measured(lambda: None, [], samples=0)


def test_rows_run_in_turn() -> None:
    calls = interleaved({"a": lambda n: n, "b": lambda n: -n}, range(1, 3))
    assert list(calls) == [(1, "a", 1), (1, "b", -1), (2, "a", 2), (2, "b", -2)]


def test_a_speedup_is_taken_within_rounds_so_drift_cancels() -> None:
    assert speedup([1.0, 2.0, 4.0], [0.5, 1.0, 2.0]) == 2  # a machine that gets slower and slower
    assert speedup([1.0, 1.0, 9.0], [0.5, 0.5, 0.5]) == 2  # and one hiccup


@pytest.mark.parametrize("candidate", [[], [1.0, 1.0]])
def test_a_speedup_needs_pairs(candidate: list[float]) -> None:
    with pytest.raises(InputError, match="one time a round"):
        speedup([1.0], candidate)


def test_spread() -> None:
    assert spread([1.0, 1.1, 0.9]) == pytest.approx(0.2)


def test_memory_that_is_freed_again_is_seen() -> None:
    with peak_memory("cpu") as peak:
        held = torch.ones(64 * 1024**2 // 4)
        time.sleep(0.05)
        del held
        time.sleep(0.02)
    assert 55 < peak.rise_mb < 90


def test_shared_weights_count_once() -> None:
    a, b = nn.Linear(512, 512, bias=False), nn.Linear(512, 512, bias=False)
    b.weight = a.weight
    assert weights_mb([a, b]) == 1.0
