"""A checkpoint that is damaged in one of nine ways is refused: always beside the original, and alone where it shows."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.checkpoints.checkpoint import Checkpoint
from fewstep.checkpoints.formats import FORMATS, write
from fewstep.checkpoints.layouts import NVFP4, other_nibble_first
from fewstep.checkpoints.stored import WEIGHTS
from fewstep.checkpoints.verify import verify
from fewstep.errors import CheckpointError, InputError
from fewstep.numerics.elements import pack, unpack
from fewstep.numerics.quantized import Quantized
from fewstep.numerics.swizzle import swizzle, unswizzle
from tests.checkpoints.making import LAYOUTS, quantized
from tests.checkpoints.test_formats import HOLDS, place, tensors

# Matrices that no format fuses with others: one on its own can be damaged and written.
ALONE = ("ff.net.0.proj", "ff.net.2", "attn.to_out.0", "ff_context.net.0.proj", "ff_context.net.2", "attn.to_add_out")
SQUARE = ("attn.to_out.0", "attn.to_add_out")
TWINS = (("ff.net.0.proj", "ff_context.net.0.proj"), ("ff.net.2", "ff_context.net.2"), SQUARE)
COMBINATIONS = [(format, name) for format in FORMATS for name, layout in LAYOUTS.items() if layout in HOLDS[format]]
In = Callable[[Path, "random.Random"], None]


@cache
def whole(layout: str) -> tuple[Checkpoint, dict[str, Tensor]]:
    return quantized("wide", LAYOUTS[layout])


def path_of(name: str) -> str:
    return f"transformer_blocks.0.{name}"


def with_layer(checkpoint: Checkpoint, name: str, change: Callable[[Quantized], Quantized]) -> Checkpoint:
    path = path_of(name)
    return replace(checkpoint, layers={**checkpoint.layers, path: change(checkpoint.layers[path])})


def swapped_nibbles(c: Checkpoint, rng: random.Random) -> Checkpoint | None:
    if next(iter(c.layers.values())).layout != NVFP4:
        return None
    return with_layer(c, rng.choice(ALONE), lambda q: replace(q, codes=other_nibble_first(q.codes)))


def swizzled_scales(c: Checkpoint, rng: random.Random) -> Checkpoint | None:
    name = rng.choice(ALONE)
    rows, columns = c.layers[path_of(name)].scale.shape
    if rows % 128 or columns % 4:
        return None
    order = rng.choice([swizzle, lambda scale: unswizzle(scale, rows, columns)])
    return with_layer(c, name, lambda q: replace(q, scale=order(q.scale)))


def transposed(c: Checkpoint, rng: random.Random) -> Checkpoint | None:
    def change(q: Quantized) -> Quantized:
        codes = pack(unpack(q.codes).T.contiguous()) if q.layout == NVFP4 else q.codes.view(torch.uint8).T.contiguous()
        return replace(q, codes=codes.view(q.codes.dtype))

    return with_layer(c, rng.choice(SQUARE), change)


def anothers_scale(c: Checkpoint, rng: random.Random) -> Checkpoint | None:
    a, b = rng.choice(TWINS)
    other = c.layers[path_of(b)]
    return with_layer(c, a, lambda q: replace(q, scale=other.scale, global_scale=other.global_scale))


def nan_scale(c: Checkpoint, rng: random.Random) -> Checkpoint | None:
    def change(q: Quantized) -> Quantized:
        one = q.scale.clone().view(torch.uint8)
        size = q.scale.element_size()
        place = size * rng.randrange(q.scale.numel())
        nan = {1: [0xFF if q.layout.scale == "e8m0" else 0x7F], 4: [0, 0, 0xC0, 0x7F]}[size]
        one.reshape(-1)[place : place + size] = torch.tensor(nan, dtype=torch.uint8)
        return replace(q, scale=one.view(q.scale.dtype))

    return with_layer(c, rng.choice(ALONE), change)


def file_of(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path


def rewrite(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> None:
    with safe_open(file_of(path), framework="pt") as handle:
        metadata = dict(handle.metadata())
    held = tensors(path)
    change(held, metadata)
    save_file(held, file_of(path), metadata)


def is_scale(name: str) -> bool:
    return name.endswith(("weight_scale", "weight_scale_2", "scale_weight", "_weight_per_tensor_scale"))


def drop_scale(path: Path, rng: random.Random) -> None:
    rewrite(path, lambda held, _: held.pop(rng.choice(sorted(filter(is_scale, held)))))


def wrong_blocks(path: Path, rng: random.Random) -> None:
    def change(held: dict[str, Tensor], _: dict[str, str]) -> None:
        name = rng.choice(sorted(n for n in held if n.endswith(("weight_scale", "scale_weight"))))
        scale = held[name]
        raw = scale.reshape(-1, 1) if scale.dim() < 2 else scale
        raw = torch.cat((raw.view(torch.uint8), raw.view(torch.uint8)), rng.choice((0, 1)))
        held[name] = raw.contiguous().view(scale.dtype)

    rewrite(path, change)


def cut_short(path: Path, rng: random.Random) -> None:
    data = file_of(path).read_bytes()
    file_of(path).write_bytes(data[: rng.randrange(len(data))])


def lying_header(path: Path, rng: random.Random) -> None:
    """The header says another size, another type, or another scheme than what lies there."""
    data = file_of(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name = rng.choice(sorted(n for n in header if is_scale(n) or n.endswith((".weight", "_qdata"))))
    if rng.random() < 0.5:
        header[name]["data_offsets"][1] += rng.choice((-1, 1))
    else:
        kinds = {"F32": "I32", "F8_E4M3": "I8", "U8": "I8", "I8": "F8_E5M2", "F8_E8M0": "I8"}
        header[name]["dtype"] = kinds[header[name]["dtype"]]
    words = json.dumps(header).encode()
    file_of(path).write_bytes(len(words).to_bytes(8, "little") + words + data[8 + size :])


MADE: dict[str, Callable[[Checkpoint, random.Random], Checkpoint | None]] = {
    "swapped nibbles": swapped_nibbles,
    "swizzled scales": swizzled_scales,
    "transposed weight": transposed,
    "scale of another layer": anothers_scale,
    "NaN scale": nan_scale,
}
WRITTEN: dict[str, In] = {
    "dropped scale": drop_scale,
    "wrong block size": wrong_blocks,
    "truncated file": cut_short,
    "lying header": lying_header,
}
SEEN_ALONE = ("NaN scale", *WRITTEN)


def mutate_and_verify(seed: int, folder: Path) -> None:
    rng = random.Random(seed)
    kind = [*MADE, *WRITTEN][seed % 9]
    while True:
        format, layout = rng.choice(COMBINATIONS)
        checkpoint, original = whole(layout)
        bad = MADE[kind](checkpoint, rng) if kind in MADE else checkpoint
        if bad is not None:
            break
    path = write(bad, place(folder, format, str(seed)), format)
    if kind in WRITTEN:
        WRITTEN[kind](path, rng)
    with pytest.raises((CheckpointError, InputError)) as refused:
        verify(path, original)
    assert str(path) in str(refused.value), (seed, kind, format, layout)
    if kind in SEEN_ALONE or (kind == "transposed weight" and layout == "nvfp4"):
        with pytest.raises((CheckpointError, InputError)):
            verify(path)


@pytest.mark.parametrize("seed", range(63))
def test_no_damage_is_accepted_beside_the_original(seed: int, tmp_path: Path) -> None:
    mutate_and_verify(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(63, 1063))
def test_a_thousand_damages_more(seed: int, tmp_path: Path) -> None:
    mutate_and_verify(seed, tmp_path)


@pytest.mark.parametrize(("format", "layout"), COMBINATIONS)
def test_what_is_not_damaged_is_accepted(format: str, layout: str, tmp_path: Path) -> None:
    checkpoint, original = whole(layout)
    path = write(checkpoint, place(tmp_path, format), format)
    assert verify(path, original).beside_original
    assert not verify(path).beside_original
