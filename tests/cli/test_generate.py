"""One picture or clip from the command line."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from fewstep.machine import Machine
from fewstep.models.manifest import Manifest
from fewstep.zoo.moving.pipeline import PROMPT_TOKENS, build_pipeline
from tests.cli.conftest import Fewstep


def test_the_same_seed_gives_the_same_picture(fewstep: Fewstep, model: Path, tmp_path: Path) -> None:
    drawn = []
    for seed, name in ((1, "a.png"), (1, "b.png"), (2, "c.png")):
        facts = fewstep("generate", model, "a red ring", "--seed", seed, "-o", tmp_path / name, "--json").json
        assert facts["picture"] == str(tmp_path / name)
        assert facts["seconds"] > 0
        drawn.append(Image.open(tmp_path / name).tobytes())
    assert drawn[0] == drawn[1] != drawn[2]
    assert Image.open(tmp_path / "a.png").size == (64, 64)


def test_a_recipe_says_what_engaged(fewstep: Fewstep, model: Path, tmp_path: Path, able_machine: Machine) -> None:
    (tmp_path / "half.yaml").write_text("techniques: [precision]")
    line = ["generate", model, "a red ring", "--steps", 1, "-o", tmp_path / "a.webp"]
    facts = fewstep(*line, "--recipe", tmp_path / "half.yaml", "--json").json
    assert list(facts["engaged"]) == ["precision"]
    assert facts["engaged"]["precision"]
    assert fewstep(*line, "--json").json["engaged"] == {}


def test_as_a_table(fewstep: Fewstep, model: Path, tmp_path: Path) -> None:
    ran = fewstep("generate", model, "a red ring", "--steps", 1, "-o", tmp_path / "new folder" / "a.png")
    assert ran.code == 0
    assert "seconds" in ran.out
    assert (tmp_path / "new folder" / "a.png").exists()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pipelines") / "video"
    build_pipeline().save_pretrained(folder)
    size = {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": PROMPT_TOKENS}
    Manifest(name="video", call={**size, "num_inference_steps": 1}).write(folder)
    return folder


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_a_clip_moves(fewstep: Fewstep, video: Path, tmp_path: Path, suffix: str) -> None:
    facts = fewstep("generate", video, "a red ring moving left", "-o", tmp_path / f"a.{suffix}", "--json").json
    clip = Image.open(facts["clip"])
    assert (clip.n_frames, clip.size) == (5, (16, 16))


def test_a_clip_is_an_mp4_that_plays(fewstep: Fewstep, video: Path, tmp_path: Path) -> None:
    facts = fewstep("generate", video, "a red ring moving left", "-o", tmp_path / "a.mp4", "--json").json
    with av.open(facts["clip"]) as container:
        assert [frame.to_ndarray(format="rgb24").shape for frame in container.decode(video=0)] == [(16, 16, 3)] * 5


def test_a_picture_in_a_file_of_clips_is_refused(fewstep: Fewstep, tmp_path: Path) -> None:
    refusal = fewstep("generate", "zoo:shapes-1step", "a red ring", "-o", tmp_path / "a.mp4").refusal
    assert "must be a file that ends in .png or .jpg or .jpeg or .webp or .gif for a picture" in refusal


def test_a_clip_in_a_picture_file_is_refused(fewstep: Fewstep, video: Path, tmp_path: Path) -> None:
    refusal = fewstep("generate", video, "a red ring moving left", "-o", tmp_path / "a.png").refusal
    assert "must be a file that ends in .gif or .webp or .mp4 for a clip" in refusal
