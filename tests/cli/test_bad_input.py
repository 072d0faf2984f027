"""What a user can get wrong gives one sentence: what, where, and what would be right. Nothing saved is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.machine import Machine
from tests.cli.conftest import Fewstep


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A picture that is already there."""
    path = tmp_path / "ring.png"
    path.write_bytes(b"precious")
    return path


def recipe_file(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_folder_that_is_no_pipeline(fewstep: Fewstep, tmp_path: Path, out: Path) -> None:
    sentence = fewstep("generate", tmp_path, "a red ring", "-o", out).refusal
    assert str(tmp_path) in sentence
    assert "no diffusers pipeline" in sentence
    assert out.read_bytes() == b"precious"


def test_a_model_that_is_nowhere(fewstep: Fewstep, tmp_path: Path) -> None:
    assert "no folder" in fewstep("generate", tmp_path / "nowhere", "a red ring").refusal
    assert "The zoo has no 'nothing'" in fewstep("generate", "zoo:nothing", "a red ring").refusal


@pytest.mark.parametrize("prompt", ["", "  \n", "\udcff\udcfe", "a\x00b"])
def test_a_prompt_that_is_no_text(fewstep: Fewstep, model: Path, prompt: str) -> None:
    assert "The 'PROMPT' of fewstep generate must be a text" in fewstep("generate", model, prompt).refusal


@pytest.mark.parametrize("steps", [0, -4])
def test_steps_that_are_none(fewstep: Fewstep, model: Path, steps: int) -> None:
    for command in (["generate", model, "a red ring"], ["zoo", "eval", "shapes"]):
        sentence = fewstep(*command, "--steps", steps).refusal
        assert "'--steps'" in sentence
        assert f"Got {steps}" in sentence


def test_steps_that_are_no_number(fewstep: Fewstep, model: Path) -> None:
    ran = fewstep("generate", model, "a red ring", "--steps", "four")
    assert ran.code == 2
    assert "--steps" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("techniques: [warp_drive]", "warp_drive"),
        ("techniques: [{precision: {colour: red}}]", "colour"),
        ("techniques: [{precision: {dtype: float3}}]", "float3"),
        ("techniques: {", "recipe.yaml"),
        ("just words", "recipe.yaml"),
    ],
)
@pytest.mark.parametrize("command", ["check", "generate"])
def test_a_recipe_that_is_wrong(
    fewstep: Fewstep, model: Path, tmp_path: Path, text: str, named: str, command: str
) -> None:
    recipe = recipe_file(tmp_path, text)
    line = ["recipe", "check", recipe, "--model", model]
    ran = fewstep(*line) if command == "check" else fewstep("generate", model, "a red ring", "--recipe", recipe)
    assert named in ran.refusal


def test_a_recipe_that_is_not_there(fewstep: Fewstep, model: Path, tmp_path: Path) -> None:
    assert "nowhere.yaml" in fewstep("recipe", "check", tmp_path / "nowhere.yaml", "--model", model).refusal


def test_two_techniques_that_claim_the_same(fewstep: Fewstep, model: Path, tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, "techniques: [{cache: {preset: teacache}}, {cache: {preset: magcache}}]")
    assert "cache" in fewstep("recipe", "check", recipe, "--model", model).refusal


def test_a_trick_that_this_machine_cannot_do(
    fewstep: Fewstep, model: Path, tmp_path: Path, out: Path, bare_machine: Machine
) -> None:
    recipe = recipe_file(tmp_path, "techniques: [{quantize: {scheme: fp8-dynamic}}]")
    for command in (
        ["recipe", "check", recipe, "--model", model],
        ["generate", model, "a ring", "-r", recipe, "-o", out],
    ):
        assert bare_machine.missing("fp8") in fewstep(*command).refusal
    assert out.read_bytes() == b"precious"


def test_a_weight_file_that_is_cut_short(fewstep: Fewstep, model: Path, out: Path) -> None:
    weights = next((model / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    sentence = fewstep("generate", model, "a red ring", "-o", out).refusal
    assert weights.name in sentence
    assert "damaged" in sentence
    assert out.read_bytes() == b"precious"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk(fewstep: Fewstep, model: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_bytes(path: Path, data: bytes) -> None:
        with open("/dev/full", "wb") as full:  # the kernel's own error, as a full disk gives it
            full.write(data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    sentence = fewstep("generate", model, "a red ring", "-o", out).refusal
    assert "the disk is full" in sentence
    assert str(out) in sentence
    assert out.read_bytes() == b"precious"
    assert sorted(path.name for path in out.parent.iterdir()) == ["ring.png", "tiny"]


def test_a_picture_of_no_known_kind(fewstep: Fewstep, model: Path, tmp_path: Path) -> None:
    assert "'--out'" in fewstep("generate", model, "a red ring", "-o", tmp_path / "ring.exe").refusal


def test_new_text_encoders_for_no_pipeline(fewstep: Fewstep, tmp_path: Path) -> None:
    assert "there is no --start" in fewstep("zoo", "train", "shapes", "--out", tmp_path, "--new-text").refusal


def test_a_rate_that_trains_nothing(fewstep: Fewstep, tmp_path: Path) -> None:
    assert "'--rate'" in fewstep("zoo", "train", "shapes", "--out", tmp_path / "run", "--rate", "0").refusal
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_with_neither_scheme_nor_recipe(fewstep: Fewstep, tmp_path: Path) -> None:
    assert "needs --scheme" in fewstep("quantize", "zoo:shapes", "--out", tmp_path / "x").refusal
    sentence = fewstep("quantize", "zoo:shapes", "--scheme", "nvfp5", "--out", tmp_path / "x").refusal
    assert "'scheme' of Quantize" in sentence
    assert not (tmp_path / "x").exists()
