"""The number formats of 4 and 8 bits: their codes, their values, and rounding to the nearest with ties to even."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Element:
    """One number format.

    Attributes:
        name: as in a checkpoint's config: `int8`, `e4m3`, …
        bits: of one number.
        largest: the largest value.
        dtype: of a tensor of codes. Two numbers of 4 bits share a `uint8`, the lower index in the low bits.
        encode: values (…, K) float32, already divided by their scale → codes; what is out of range becomes `largest`.
        decode: codes → values in float32.
    """

    name: str
    bits: int
    largest: float
    dtype: torch.dtype
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


def pack(codes: Tensor) -> Tensor:
    """Codes 0…15, (…, K) uint8 → (…, K/2): element 2i in the low nibble of byte i."""
    return codes[..., 0::2] | codes[..., 1::2] << 4


def unpack(packed: Tensor) -> Tensor:
    """The inverse of `pack`: (…, K/2) uint8 → codes 0…15, (…, K)."""
    return torch.stack((packed & 15, packed >> 4), -1).flatten(-2)


_HALVES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])  # what the codes 0…7 of e2m1 stand for; 8…15 negate
_MIDDLES = (_HALVES[1:] + _HALVES[:-1]) / 2
# A value half-way goes to the even code: three of the middles round up, so their bound lies a breath below.
_BOUNDS = torch.where(torch.arange(7) % 2 == 1, torch.nextafter(_MIDDLES, torch.zeros(())), _MIDDLES)


def _encode_e2m1(x: Tensor) -> Tensor:
    magnitude = torch.bucketize(x.abs(), _BOUNDS.to(x.device)).to(torch.uint8)
    return pack(magnitude | x.signbit().to(torch.uint8) << 3)


def _decode_e2m1(packed: Tensor) -> Tensor:
    values = torch.cat((_HALVES, -_HALVES)).to(packed.device)
    return values[unpack(packed).int()]


def _encode_e4m3(x: Tensor) -> Tensor:
    return x.clamp(-448.0, 448.0).to(torch.float8_e4m3fn)  # torch's cast makes NaN of what is out of range


def _encode_int4(x: Tensor) -> Tensor:
    return pack((x.round().clamp(-7, 7).to(torch.int8) & 15).to(torch.uint8))


def _decode_int4(packed: Tensor) -> Tensor:
    codes = unpack(packed).to(torch.int8)
    return torch.where(codes > 7, codes - 16, codes).float()


def _encode_int8(x: Tensor) -> Tensor:
    return x.round().clamp(-127, 127).to(torch.int8)


INT8 = Element("int8", 8, 127.0, torch.int8, _encode_int8, Tensor.float)
INT4 = Element("int4", 4, 7.0, torch.uint8, _encode_int4, _decode_int4)
E4M3 = Element("e4m3", 8, 448.0, torch.float8_e4m3fn, _encode_e4m3, Tensor.float)
E2M1 = Element("e2m1", 4, 6.0, torch.uint8, _encode_e2m1, _decode_e2m1)
ELEMENTS = {element.name: element for element in (INT8, INT4, E4M3, E2M1)}
