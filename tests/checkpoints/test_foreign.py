"""Others load what we write, and we read what they write: torchao 0.18 and diffusers' own loaders, value by value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from fewstep.checkpoints.checkpoint import Checkpoint
from fewstep.checkpoints.formats import read, write
from fewstep.checkpoints.layouts import FP8_ROW, NVFP4
from fewstep.numerics.quantized import dequantize
from tests.checkpoints.making import LAYOUTS, quantized, tensors_of

CONFIGS = ("Int8WeightOnlyConfig", "Float8WeightOnlyConfig", "NVFP4WeightOnlyConfig")
OUTSIDE = ["x_embedder", "context_embedder", "time_guidance_embed", "proj_out"]


def wrong(model: Any, checkpoint: Checkpoint) -> list[str]:
    """Names of what the model does not have as the checkpoint says."""
    held = {
        name: getattr(t, "dequantize", t.clone)() if "AO" in str(type(t).__mro__) else t
        for name, t in model.state_dict().items()
    }
    meant = {**{f"{path}.weight": dequantize(q) for path, q in checkpoint.layers.items()}, **checkpoint.plain}
    return [name for name, x in meant.items() if not torch.equal(held[name].float(), x.float())]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_diffusers_loads_our_torchao_folder(layout: str, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    checkpoint, _ = quantized("wan", LAYOUTS[layout])
    path = write(checkpoint, tmp_path / "x", "torchao")
    model = getattr(diffusers, checkpoint.model).from_pretrained(str(path), torch_dtype=torch.float32)
    kinds = {type(tensor).__name__ for tensor in model.state_dict().values()}
    assert len(kinds - {"Tensor", "Parameter"}) == 1
    assert wrong(model, checkpoint) == []


@pytest.mark.parametrize("config", CONFIGS)
def test_we_read_what_diffusers_and_torchao_save(config: str, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    import torchao.prototype.mx_formats
    import torchao.quantization

    name, words, tensors = tensors_of("flux2")
    kind = getattr(diffusers, name)
    plain = kind.from_config(json.loads(words))
    plain.load_state_dict(tensors)
    plain.save_pretrained(tmp_path / "plain")
    made = getattr(torchao.quantization, config, None) or getattr(torchao.prototype.mx_formats, config)
    how = diffusers.TorchAoConfig(made(), modules_to_not_convert=OUTSIDE)
    model = kind.from_pretrained(str(tmp_path / "plain"), torch_dtype=torch.float32, quantization_config=how)
    model.save_pretrained(tmp_path / "theirs")
    checkpoint = read(tmp_path / "theirs")
    assert len(checkpoint.layers) == 18
    assert wrong(model, checkpoint) == []


@pytest.mark.parametrize("layout", [NVFP4, FP8_ROW], ids=["nvfp4", "fp8r"])
def test_diffusers_loads_our_bfl_file(layout: Any, tmp_path: Path) -> None:
    checkpoint, _ = quantized("flux2", layout)
    path = write(checkpoint, tmp_path / "x.safetensors", "bfl")
    config = {**checkpoint.config, "_class_name": checkpoint.model}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = getattr(diffusers, checkpoint.model).from_single_file(
        str(path),
        config=str(tmp_path),
        quantization_config=diffusers.BFLQuantizationConfig(torch.float32),
        torch_dtype=torch.float32,
    )
    model.dequantize()
    assert wrong(model, checkpoint) == []
