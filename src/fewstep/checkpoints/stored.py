"""Safetensors as they lie on the disk: headers first, numbers by name, and writing one layer at a time.

Nothing here unpickles, and nothing else in a checkpoint is executed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fewstep.errors import CheckpointError

WEIGHTS = "diffusion_pytorch_model.safetensors"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """The tensors of one file, or of a folder's shards.

    Attributes:
        path: of the file or folder, for messages.
        where: name of a tensor -> the open file that holds it.
        metadata: the headers' own words, all shards together.
    """

    path: Path
    where: Mapping[str, Any]
    metadata: Mapping[str, str]

    def numbers(self, name: str) -> Tensor:
        tensor: Tensor = self.where[name].get_tensor(name)
        return tensor

    def shape(self, name: str) -> Tensor:
        """The tensor on the meta device, from the header alone."""
        part = self.where[name].get_slice(name)
        kind = part.get_dtype()
        if kind not in DTYPES:
            raise CheckpointError(f"{self.path}: the tensor {name} is of type {kind}, which no known format has.")
        return torch.empty(part.get_shape(), dtype=DTYPES[kind], device="meta")

    @property
    def nbytes(self) -> int:
        """Of all tensors, from the headers alone."""
        return sum(self.shape(name).nbytes for name in self.where)


def open_stored(path: Path) -> Stored:
    """Open a safetensors file, or all those of a folder; reads no numbers.

    Raises:
        CheckpointError: a file is cut short, its header lies about its length, or two shards hold one name.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{path} has no safetensors file; other kinds of weights are not read.")
    where: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for file in files:
        handle = _open(file)
        names = list(handle.keys())
        if twice := where.keys() & set(names):
            raise CheckpointError(f"{file}: the tensor {min(twice)} stands in another shard too; it may stand in one.")
        where |= dict.fromkeys(names, handle)
        metadata |= handle.metadata() or {}
    return Stored(path, where, metadata)


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")  # checks that the header's sizes are those of the file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is no whole safetensors file, it is damaged or cut short: {error}.") from error


@dataclass(frozen=True)
class Group:
    """Tensors that are made together, such as a layer's codes and scales.

    Attributes:
        outline: name -> tensor on the meta device.
        make: the same with numbers.
    """

    outline: Mapping[str, Tensor]
    make: Callable[[], Mapping[str, Tensor]]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.outline.values())


def write_file(file: Path, groups: Iterable[Group], metadata: Mapping[str, str]) -> None:
    """A safetensors file, made group by group: no more than one is in memory.

    The numbers lie in the order of their types' sizes, so that each begins where its type may.
    """
    groups = list(groups)
    outline = {name: tensor for group in groups for name, tensor in group.outline.items()}
    order = sorted(outline, key=lambda name: (-outline[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        tensor = outline[name]
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    words = json.dumps(header, ensure_ascii=False).encode()
    words += b" " * (-len(words) % 8)
    with file.open("wb") as out:
        out.write(len(words).to_bytes(8, "little") + words)
        out.truncate(8 + len(words) + end)
        for group in groups:
            for name, tensor in group.make().items():
                _put(out, 8 + len(words) + header[name]["data_offsets"][0], outline[name], name, tensor)


def _put(out: BinaryIO, place: int, outline: Tensor, name: str, tensor: Tensor) -> None:
    if (tensor.shape, tensor.dtype) != (outline.shape, outline.dtype):
        raise CheckpointError(
            f"The tensor {name} came out as {tuple(tensor.shape)} {tensor.dtype}, not as the header says: "
            f"{tuple(outline.shape)} {outline.dtype}."
        )
    out.seek(place)
    out.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def write_folder(folder: Path, groups: list[Group], metadata: Mapping[str, str], shard: int = 5 * 2**30) -> None:
    """The same as diffusers lays it out: one file, or shards of up to `shard` bytes with their index."""
    shards: list[list[Group]] = [[]]
    for group in groups:
        if shards[-1] and sum(g.nbytes for g in shards[-1]) + group.nbytes > shard:
            shards.append([])
        shards[-1].append(group)
    if len(shards) == 1:
        write_file(folder / WEIGHTS, shards[0], metadata)
        return
    where: dict[str, str] = {}
    for number, part in enumerate(shards, 1):
        name = WEIGHTS.replace(".safetensors", f"-{number:05}-of-{len(shards):05}.safetensors")
        write_file(folder / name, part, metadata)
        where |= {tensor: name for group in part for tensor in group.outline}
    total = {"total_size": sum(group.nbytes for group in groups)}
    index = json.dumps({"metadata": total, "weight_map": where}, indent=2)
    (folder / f"{WEIGHTS}.index.json").write_text(index, encoding="utf-8")
