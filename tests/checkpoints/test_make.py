"""Checkpoints made from plain models, and pipelines loaded from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import fewstep
from fewstep.checkpoints.formats import FORMATS, read, write
from fewstep.checkpoints.load import model_of
from fewstep.checkpoints.make import fused_with, make, quantized
from fewstep.checkpoints.stored import open_stored
from fewstep.checkpoints.verify import verify
from fewstep.cli.main import app
from fewstep.errors import CheckpointError, InputError
from fewstep.models.load import INDEX, copy_pipeline
from fewstep.numerics.quantized import dequantize
from fewstep.numerics.schemes import SCHEMES
from fewstep.techniques.linears import EmulatedLinear
from fewstep.techniques.linears.layers import Rules
from tests.checkpoints.making import quantized as few_bits
from tests.techniques.tiny import as_loaded, distance, pipeline, run

ALL = Rules((), 16, None)
HELD = [
    ("modelopt", "nvfp4"),
    ("modelopt", "mxfp8"),
    ("modelopt", "fp8-dynamic"),
    ("modelopt", "fp8-dynamic-tensor"),
    ("torchao", "int8-dynamic"),
    ("comfy", "nvfp4"),
    ("comfy-scaled-fp8", "fp8-dynamic-tensor"),
    ("bfl", "fp8-dynamic"),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder, not to be changed."""
    folder = tmp_path_factory.mktemp("plain") / "pipeline"
    pipe = as_loaded(pipeline())
    pipe.save_pretrained(folder)
    assert pipe.fewstep_manifest is not None
    pipe.fewstep_manifest.write(folder)
    return folder


def on_the_hub(folder: Path, name: str, cache: Path) -> None:
    """A pipeline's folder as the hub's cache keeps it, so that its id can be loaded without a network."""
    place = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")


@pytest.mark.parametrize("few", [True, False])
def test_a_hub_id_is_loaded_as_its_folder(few: bool, plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made" if few else plain
    if few:
        make(plain, folder, SCHEMES["nvfp4"], rules=ALL)
    on_the_hub(folder, "somebody/model", tmp_path / "cache")
    pipe = fewstep.load("somebody/model", cache_dir=tmp_path / "cache")
    assert any(isinstance(m, EmulatedLinear) for m in pipe.transformer.modules()) == few
    assert torch.equal(run(pipe), run(fewstep.load(folder)))
    assert pipe.fewstep_manifest.call == fewstep.load(plain).fewstep_manifest.call


@pytest.mark.parametrize(("format", "scheme"), HELD)
def test_what_is_made_is_right_beside_the_original(format: str, scheme: str, plain: Path, tmp_path: Path) -> None:
    out = tmp_path / ("x" if FORMATS[format].folder else "x.safetensors")
    made = make(plain, out, SCHEMES[scheme], format=format, rules=ALL)
    assert verify(made.checkpoint, made.original).layers == made.layers > 10
    assert made.bytes_after < 0.6 * made.bytes_before  # a tiny model's norms and embedders weigh more
    assert made.skipped["named by the model's family"] > 0


@pytest.mark.parametrize(("format", "scheme"), [pair for pair in HELD if pair[0] != "torchao"])
def test_a_pipeline_loaded_from_it_draws_with_its_weights(
    format: str, scheme: str, plain: Path, tmp_path: Path
) -> None:
    out = tmp_path / ("x" if FORMATS[format].folder else "x.safetensors")
    made = make(plain, out, SCHEMES[scheme], format=format, rules=ALL)
    pipe = fewstep.load(out) if FORMATS[format].folder else fewstep.load(out, base=plain)
    layers = {n: m for n, m in pipe.transformer.named_modules() if isinstance(m, EmulatedLinear)}
    assert len(layers) == made.layers
    meant = fewstep.load(plain)
    weights = {path: dequantize(q) for path, q in read(made.checkpoint, plain / "transformer").layers.items()}
    for path, weight in weights.items():
        meant.transformer.get_submodule(path).weight.data = weight
    assert distance(run(pipe), run(meant)) < 1e-4
    assert 0 < distance(run(pipe), run(fewstep.load(plain))) < 0.3
    assert pipe("a red ring", output_type="pil").images[0].size == (64, 64)  # with the manifest's defaults


def test_layers_that_are_fused_share_their_scale(plain: Path) -> None:
    checkpoint, _ = quantized(plain / "transformer", SCHEMES["nvfp4"], ALL)
    for path in checkpoint.layers:
        scales = {float(checkpoint.layers[other].global_scale) for other in fused_with(path, checkpoint.model)}
        assert len(scales) == 1
    assert fused_with("blocks.0.attn1.to_k", "WanTransformer3DModel") == tuple(f"blocks.0.attn1.to_{x}" for x in "qkv")
    assert fused_with("blocks.0.ffn.net.2", "WanTransformer3DModel") == ("blocks.0.ffn.net.2",)


def test_only_what_is_asked_for_is_read(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fewstep.checkpoints.stored import Stored

    seen: list[str] = []
    numbers = Stored.numbers
    monkeypatch.setattr(Stored, "numbers", lambda self, name: (seen.append(name), numbers(self, name))[1])
    checkpoint, _ = quantized(plain / "transformer", SCHEMES["int8-dynamic"], ALL)
    assert seen == []
    _ = checkpoint.layers["transformer_blocks.0.ff.net.2"]
    assert seen == ["transformer_blocks.0.ff.net.2.weight"]


def test_layers_can_be_named(plain: Path) -> None:
    keep = ("transformer.transformer_blocks.0.ff.net.2",)
    checkpoint, skipped = quantized(plain / "transformer", SCHEMES["nvfp4"], Rules(("to_q",), 16, keep))
    assert skipped["named in 'keep'"] == 1
    assert "transformer_blocks.0.ff.net.2" not in checkpoint.layers
    assert "x_embedder" in checkpoint.layers  # no hint holds beside 'keep'
    assert not any("to_q" in path for path in checkpoint.layers)


def test_a_zoo_model_becomes_a_whole_pipeline_by_the_command(tmp_path: Path) -> None:
    out = tmp_path / "student"
    arguments = ["quantize", "zoo:shapes-4step", "--scheme", "fp8-dynamic", "--out", str(out), "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    facts = json.loads(result.stdout)
    assert facts["verified"] is True
    pipe = fewstep.load(out)
    assert pipe.fewstep_manifest.steps == 4
    assert (out / "vae" / "config.json").exists()
    assert "torch.float8" not in str(pipe.transformer.dtype)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda t: t.pop("single_transformer_blocks.0.proj_out.weight_scale"), "no scale says what they mean"),
        (lambda t: t.update(extra=torch.zeros(2)), "extra is (left over|no part)"),
        (lambda t: t["transformer_blocks.0.ff.net.2.weight_scale"].mul_(torch.nan), "not a finite number"),
    ],
    ids=["dropped scale", "left over", "not a number"],
)
def test_what_is_damaged_is_refused_by_name(damage, words: str, plain: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from safetensors.torch import load_file, save_file

    out = tmp_path / "x"
    make(plain, out, SCHEMES["fp8-dynamic-tensor"], rules=ALL)
    file = next((out / "transformer").glob("*.safetensors"))
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=words):
        fewstep.load(out)


def test_what_can_not_be_made_is_said(plain: Path, tmp_path: Path) -> None:
    def refused(words: str, *arguments: str) -> None:
        with pytest.raises((InputError, CheckpointError), match=words):
            make(plain, tmp_path / "x", SCHEMES[arguments[0]], format=arguments[1], rules=ALL, component=arguments[2])
        assert not (tmp_path / "x").exists()

    refused("low-rank branch of svd-int4", "svd-int4", "modelopt", "transformer")
    refused("'format' of a checkpoint", "nvfp4", "gguf", "transformer")
    refused("'component' of", "nvfp4", "modelopt", "unet")
    refused("can't hold the layer", "int8-dynamic", "modelopt", "transformer")
    refused("no layer to quantize", "nvfp4", "modelopt", "vae")
    with pytest.raises(InputError, match="no layer to quantize"):
        make(plain, tmp_path / "x", SCHEMES["nvfp4"], rules=Rules((), 4096, None))
    make(plain, tmp_path / "x", SCHEMES["nvfp4"], rules=ALL)
    with pytest.raises(CheckpointError, match="quantized already"):
        make(tmp_path / "x", tmp_path / "y", SCHEMES["nvfp4"], rules=ALL)


def test_a_denoiser_alone_needs_its_pipeline(plain: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    make(plain, file, SCHEMES["nvfp4"], format="comfy", rules=ALL)
    with pytest.raises(InputError, match="name in 'base'"):
        fewstep.load(file)
    with pytest.raises(InputError, match="There is no file"):
        fewstep.load(tmp_path / "y.safetensors", base=plain)
    with pytest.raises(InputError, match="a pipeline of its own"):
        fewstep.load(plain, base=plain)
    other = tmp_path / "unet"
    copy_pipeline(plain, other)
    index = json.loads((other / INDEX).read_text())
    (other / "transformer").rename(other / "unet")
    (other / INDEX).write_text(json.dumps({**index, "transformer": [None, None], "unet": index["transformer"]}))
    with pytest.raises(InputError, match="a pipeline with a transformer"):
        fewstep.load(foreign(file), base=other)


def foreign(file: Path) -> Path:
    """The same file without what fewstep says in its header: as another tool writes it."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(file, framework="pt") as handle:
        said = {key: value for key, value in handle.metadata().items() if key != "fewstep"}
    save_file(load_file(file), file, said)
    return file


def test_no_full_precision_copy_is_made(plain: Path, tmp_path: Path) -> None:
    made = make(plain, tmp_path / "x", SCHEMES["nvfp4"], rules=ALL)
    model = model_of(made.checkpoint)
    held = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert held <= 1.1 * open_stored(Path(made.checkpoint)).nbytes
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


def test_in_bfloat16_weights_are_cast_and_tables_of_positions_are_not(tmp_path: Path) -> None:
    checkpoint, _ = few_bits("wan", SCHEMES["nvfp4"].weight)
    model = model_of(write(checkpoint, tmp_path / "x", "modelopt"), dtype=torch.bfloat16)
    tables = {name: table for name, table in model.named_buffers() if "rope" in name}
    assert tables
    assert all(table.dtype != torch.bfloat16 for table in tables.values())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
