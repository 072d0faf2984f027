"""One contract for every format: what is written is read back to the last bit, by itself and through the others."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fewstep.checkpoints.formats import FORMATS, assemble_opened, convert, detect, open_checkpoint, read, write
from fewstep.checkpoints.inspect import inspect
from fewstep.checkpoints.layouts import FP8_ROW, FP8_TENSOR, INT8_ROW, INT8_TENSOR, MXFP8, NVFP4
from fewstep.checkpoints.stored import Group, Stored, open_stored, write_folder
from fewstep.checkpoints.verify import verify
from fewstep.errors import CheckpointError, InputError
from fewstep.numerics.quantized import Layout
from tests.checkpoints.making import FAMILIES, LAYOUTS, differences, quantized, same

HOLDS: dict[str, tuple[Layout, ...]] = {
    "modelopt": (NVFP4, MXFP8, FP8_TENSOR, FP8_ROW),
    "torchao": (NVFP4, MXFP8, FP8_TENSOR, FP8_ROW, INT8_ROW, INT8_TENSOR),
    "comfy": (NVFP4, MXFP8, FP8_TENSOR, INT8_ROW, INT8_TENSOR),
    "comfy-scaled-fp8": (FP8_TENSOR,),
    "bfl": (NVFP4, FP8_ROW),
}
CASES = [
    (family, layout, format)
    for family in FAMILIES
    for layout in LAYOUTS
    for format in FORMATS
    if not (family == "wan" and format == "bfl")
]
HELD = [case for case in CASES if LAYOUTS[case[1]] in HOLDS[case[2]]]


def place(folder: Path, format: str, name: str = "x") -> Path:
    return folder / (name if FORMATS[format].folder else f"{name}.safetensors")


def tensors(path: Path) -> dict[str, torch.Tensor]:
    stored = open_stored(path)
    return {name: stored.numbers(name) for name in stored.where}


@pytest.mark.parametrize(("family", "layout", "format"), HELD)
def test_it_is_read_back_to_the_last_bit(family: str, layout: str, format: str, tmp_path: Path) -> None:
    checkpoint, original = quantized(family, LAYOUTS[layout])
    path = write(checkpoint, place(tmp_path, format), format)
    assert detect(path) == format
    back = read(path)
    assert differences(checkpoint, back) == []
    assert back.facts["made_by"] == "a test"
    verdict = verify(path, original)
    assert (verdict.layers, verdict.plain) == (len(checkpoint.layers), len(checkpoint.plain))
    assert verify(path).warnings
    found = inspect(path)
    assert sum(found.schemes.values()) <= len(checkpoint.layers)
    assert found.quantized_bytes >= sum(q.codes.nbytes for q in checkpoint.layers.values())
    again = write(back, place(tmp_path, format, "again"), format)
    one, other = tensors(path), tensors(again)
    assert one.keys() == other.keys()
    assert all(same(one[name], other[name]) for name in one)


PAIRS = [
    (family, layout, a, b)
    for family in FAMILIES
    for layout in LAYOUTS
    for a, b in permutations(FORMATS, 2)
    if {(family, layout, a), (family, layout, b)} <= set(HELD)
]


@pytest.mark.parametrize(("family", "layout", "a", "b"), PAIRS)
def test_there_and_back_is_the_same_file(family: str, layout: str, a: str, b: str, tmp_path: Path) -> None:
    checkpoint, _ = quantized(family, LAYOUTS[layout])
    first = write(checkpoint, place(tmp_path, a, "first"), a)
    convert(first, place(tmp_path, b, "other"), b)
    convert(place(tmp_path, b, "other"), place(tmp_path, a, "last"), a)
    one, last = tensors(first), tensors(place(tmp_path, a, "last"))
    assert one.keys() == last.keys()
    assert [name for name in one if not same(one[name], last[name])] == []


@pytest.mark.parametrize(("family", "layout", "format"), [case for case in CASES if case not in HELD])
def test_what_a_format_cannot_hold_is_refused_in_a_sentence(
    family: str, layout: str, format: str, tmp_path: Path
) -> None:
    checkpoint, _ = quantized(family, LAYOUTS[layout])
    with pytest.raises(CheckpointError, match=f"The format {format} can't hold the layer .*it holds"):
        write(checkpoint, place(tmp_path, format), format)
    assert list(tmp_path.iterdir()) == []


def test_bfl_is_for_two_families(tmp_path: Path) -> None:
    checkpoint, _ = quantized("wan", NVFP4)
    with pytest.raises(CheckpointError, match="for Flux and Flux2"):
        write(checkpoint, tmp_path / "x.safetensors", "bfl")


def test_parts_of_one_matrix_must_share_their_scale(tmp_path: Path) -> None:
    checkpoint, _ = quantized("flux", NVFP4)
    path = "transformer_blocks.0.attn.to_k"
    changed = replace(checkpoint.layers[path], global_scale=torch.tensor(1.0))
    with pytest.raises(CheckpointError, match=r"double_blocks\.0\.img_attn\.qkv .*share one global scale"):
        write(replace(checkpoint, layers={**checkpoint.layers, path: changed}), tmp_path / "x.safetensors", "comfy")


def test_several_schemes_in_one_checkpoint(tmp_path: Path) -> None:
    first, original = quantized("flux2", NVFP4)
    second, _ = quantized("flux2", FP8_TENSOR)
    mixed = {path: (second if "single" in path else first).layers[path] for path in first.layers}
    checkpoint = replace(first, layers=mixed)
    for format in ("modelopt", "torchao", "comfy"):
        path = write(checkpoint, place(tmp_path, format, format), format)
        assert differences(checkpoint, read(path)) == []
        assert len(inspect(path).schemes) == 2
        verify(path, original)
    config = json.loads((tmp_path / "modelopt" / "config.json").read_text())
    assert config["quantization_config"]["quant_algo"] == "MIXED_PRECISION"


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    made = {f"t{i}": torch.full((4, 4), float(i)) for i in range(5)}
    parts = [Group({name: t.to("meta")}, lambda name=name, t=t: {name: t}) for name, t in made.items()]
    write_folder(tmp_path, parts, {"format": "pt"}, shard=130)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    where = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())["weight_map"]
    assert where.keys() == made.keys()
    stored = open_stored(tmp_path)
    assert all(torch.equal(stored.numbers(name), made[name]) for name in made)


def test_a_file_that_does_not_say_its_model_needs_a_config(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    checkpoint, _ = quantized("flux2", NVFP4)
    path = write(checkpoint, tmp_path / "x.safetensors", "comfy")
    with safe_open(path, framework="pt") as handle:
        metadata = {key: value for key, value in handle.metadata().items() if key != "fewstep"}
    save_file({k.removeprefix("model.diffusion_model."): v for k, v in tensors(path).items()}, path, metadata)
    with pytest.raises(InputError, match="does not say which model"):
        read(path)
    assert inspect(path).model is None
    config = {**checkpoint.config, "_class_name": checkpoint.model}
    assert differences(checkpoint, read(path, config)) == []


@pytest.mark.parametrize("change", [{"quantized_layers": [1]}, {"quant_algo": 3}, {"quantized_layers": {"x": None}}])
def test_a_config_of_another_shape_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    path = write(quantized("wan", NVFP4)[0], tmp_path / "x", "modelopt")
    config = json.loads((path / "config.json").read_text())
    said = {**config["quantization_config"], "quant_algo": "MIXED_PRECISION", **change}
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    with pytest.raises(CheckpointError, match=str(path)):
        read(path)


class Counting(Stored):
    """Keeps count of the bytes that were read and are still held."""

    held, most = 0, 0

    def numbers(self, name: str) -> torch.Tensor:
        tensor = super().numbers(name)
        Counting.held += tensor.nbytes
        Counting.most = max(Counting.most, Counting.held)
        weakref.finalize(tensor, self.drop, tensor.nbytes)
        return tensor

    @staticmethod
    def drop(size: int) -> None:
        Counting.held -= size


@pytest.mark.parametrize("format", ["modelopt", "torchao", "comfy"])
def test_no_more_than_one_fused_matrix_is_in_memory(format: str, tmp_path: Path) -> None:
    source = write(quantized("wide", NVFP4)[0], tmp_path / "x", "modelopt")
    opened = open_checkpoint(source)
    stored = opened.stored
    Counting.held = Counting.most = 0
    checkpoint = assemble_opened(replace(opened, stored=Counting(stored.path, stored.where, stored.metadata)))
    assert Counting.most == 0
    write(checkpoint, place(tmp_path, format, "y"), format)
    largest = max(open_stored(source).shape(name).nbytes for name in open_stored(source).where)
    assert 0 < Counting.most <= 6 * largest  # q, k, v and the MLP of a single block are one matrix, read together
    assert Counting.most < sum(stored.shape(name).nbytes for name in stored.where) / 3


@pytest.mark.parametrize("name", ["x.pt", "x.ckpt", "x.gguf"])
def test_other_kinds_of_files_are_not_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        read(tmp_path / name)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file or folder"):
        detect(tmp_path / "nothing")
