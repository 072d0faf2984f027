"""The four commands, as a person and as a program would read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fewstep.checkpoints.formats import write
from fewstep.checkpoints.layouts import NVFP4
from fewstep.cli import checkpoints
from fewstep.errors import CheckpointError, InputError
from tests.checkpoints.making import quantized

app = typer.Typer()
for command in (checkpoints.quantize, checkpoints.inspect, checkpoints.verify, checkpoints.convert):
    app.command()(command)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(quantized("flux", NVFP4)[0], tmp_path / "x", "modelopt")


def run(*arguments: str) -> str:
    return CliRunner().invoke(app, arguments, catch_exceptions=False).stdout


def test_inspect(folder: Path) -> None:
    found = json.loads(run("inspect", str(folder), "--json"))
    assert (found["format"], found["model"]) == ("modelopt", "FluxTransformer2DModel")
    assert found["schemes"] == {"NVFP4": found["with_input_scale"]}
    assert "x_embedder" in found["precise"]
    assert "NVFP4" in run("inspect", str(folder))


def test_convert_and_verify(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "y.safetensors"
    made = json.loads(run("convert", str(folder), str(file), "--format", "comfy", "--json"))
    assert made["written"] == str(file)
    verdict = json.loads(run("verify", str(file), "--json"))
    assert (verdict["format"], verdict["layers"]) == ("comfy", made["layers"])
    assert "can't be seen" in verdict["warnings"][-1]


def test_a_fault_is_an_error_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        run("verify", str(tmp_path / "x.safetensors"))


def test_a_pipeline_is_the_original_by_name(tmp_path: Path) -> None:
    """As docs/quantize-first.md writes it."""
    run("quantize", "zoo:shapes", "--scheme", "fp8-dynamic", "--out", str(tmp_path / "fp8"), "--no-check")
    part = str(tmp_path / "fp8" / "transformer")
    assert json.loads(run("verify", part, "--original", "zoo:shapes", "--json"))["beside_original"]
    with pytest.raises(CheckpointError, match="differs from the original"):
        run("verify", part, "--original", "zoo:shapes-4step")
    with pytest.raises(InputError, match="There is no folder nowhere"):
        run("verify", part, "--original", "nowhere")
