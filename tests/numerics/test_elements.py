"""Codes and values of the small number formats, against their definitions."""

from __future__ import annotations

import pytest
import torch

from fewstep.numerics.elements import E2M1, E4M3, ELEMENTS, INT4, pack, unpack

E2M1_VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def nearest_even(x: float) -> float:
    """By definition: the nearest value, of two the one with the even code."""
    distance = [(abs(abs(x) - v), code % 2, code) for code, v in enumerate(E2M1_VALUES)]
    return float(torch.tensor(E2M1_VALUES[min(distance)[2]]).copysign(torch.tensor(x)))


def test_e2m1_rounds_to_the_nearest_and_ties_to_even() -> None:
    x = torch.arange(-7, 7.125, 0.125)
    x = torch.cat((x, x[:1]))  # an even number of them
    assert E2M1.decode(E2M1.encode(x[None]))[0].tolist() == [nearest_even(v) for v in x.tolist()]


@pytest.mark.parametrize("element", ELEMENTS.values(), ids=lambda e: e.name)
def test_what_is_decoded_is_encoded_to_the_same_codes(element) -> None:
    bytes_ = torch.arange(256, dtype=torch.uint8)[None]
    values = element.decode(bytes_.view(element.dtype))
    values = values[values.abs() <= element.largest][None]
    if element.bits == 4 and values.shape[-1] % 2:
        values = values[:, :-1]
    assert torch.equal(element.decode(element.encode(values)), values)


@pytest.mark.parametrize("element", ELEMENTS.values(), ids=lambda e: e.name)
def test_what_is_out_of_range_becomes_the_largest(element) -> None:
    x = torch.tensor([[1e9, -1e9]])
    assert element.decode(element.encode(x)).tolist() == [[element.largest, -element.largest]]


def test_the_first_of_two_lies_in_the_low_nibble() -> None:
    assert pack(torch.tensor([[1, 15, 8, 0]], dtype=torch.uint8)).tolist() == [[0xF1, 0x08]]
    assert INT4.encode(torch.tensor([[1.0, -1.0]])).tolist() == [[0xF1]]
    every = torch.arange(256, dtype=torch.uint8)[None]
    assert torch.equal(pack(unpack(every)), every)


def test_e4m3_is_torchs() -> None:
    x = torch.linspace(-448, 448, 1001)[None]
    assert torch.equal(E4M3.decode(E4M3.encode(x)), x.to(torch.float8_e4m3fn).float())
