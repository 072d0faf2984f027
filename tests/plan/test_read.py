"""Networks from folders, and what is no network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fewstep.errors import InputError
from fewstep.models.load import ZOO
from fewstep.plan.decoder import decoder_of, frames_of, pixels_of
from fewstep.plan.read import encoder_weights, known, network_of
from fewstep.plan.work import work_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pipeline's configs alone, without a weight."""
    return Path(
        shutil.copytree(
            ZOO / "shapes", tmp_path / "shapes", ignore=shutil.ignore_patterns("*.safetensors"), symlinks=False
        )
    )


def test_a_folder_needs_no_weights(folder: Path) -> None:
    network = network_of(folder)
    assert network.weights == network_of("zoo:shapes").weights
    assert (network.width, network.heads) == (192, 6)


def test_a_manifest_says_size_steps_and_guidance() -> None:
    teacher, student = (work_of(network_of(f"zoo:{name}")) for name in ("shapes", "shapes-4step"))
    assert (teacher.steps, teacher.branches, student.steps, student.branches) == (50, 2, 4, 1)
    assert (student.height, student.image_tokens, student.text_tokens) == (64, 64, 24)
    clip = work_of(network_of("zoo:moving-shapes"))
    assert (clip.frames, clip.image_tokens, clip.branches) == (17, 5 * 8 * 8, 2)


def test_encoders_of_a_folder_are_counted() -> None:
    from safetensors import safe_open

    there = 0
    for part in ("text_encoder", "text_encoder_2"):
        with safe_open(next((ZOO / "shapes" / part).glob("*.safetensors")), framework="pt") as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
            there += sum(shape[0] * shape[1] for shape in shapes if len(shape) == 2)
    assert network_of("zoo:shapes").encoders == pytest.approx(there, rel=0.1)  # positions are left out


@pytest.mark.parametrize(
    ("config", "billions"),
    [
        # T5 v1.1 XXL's encoder, CLIP-L, Llama 3 8B without its head, Qwen3 4B
        (
            {
                "d_model": 4096,
                "num_heads": 64,
                "d_kv": 64,
                "d_ff": 10240,
                "num_layers": 24,
                "vocab_size": 32128,
                "feed_forward_proj": "gated-gelu",
            },
            4.76,
        ),
        (
            {
                "hidden_size": 768,
                "num_attention_heads": 12,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "vocab_size": 49408,
                "hidden_act": "quick_gelu",
            },
            0.123,
        ),
        (
            {
                "text_config": {
                    "hidden_size": 4096,
                    "num_attention_heads": 32,
                    "num_key_value_heads": 8,
                    "intermediate_size": 14336,
                    "num_hidden_layers": 32,
                    "vocab_size": 128256,
                    "hidden_act": "silu",
                }
            },
            7.50,
        ),
        (
            {
                "hidden_size": 2560,
                "head_dim": 128,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "intermediate_size": 9728,
                "num_hidden_layers": 36,
                "vocab_size": 151936,
                "hidden_act": "silu",
            },
            4.02,
        ),
    ],
)
def test_encoders_have_as_many_weights_as_they_say(config: dict[str, object], billions: float) -> None:
    assert encoder_weights(config) / 1e9 == pytest.approx(billions, rel=0.02)


def test_decoders() -> None:
    vaes = {entry["name"]: entry["vae"] for entry in known().values()}
    assert [frames_of(vaes[name]) for name in ("flux.1-dev", "qwen-image", "wan2.1-14b", "ltx-video", "mochi-1")] == [
        1,
        1,
        4,
        8,
        6,
    ]
    assert [pixels_of(vaes[name]) for name in ("flux.1-dev", "wan2.1-14b", "wan2.2-5b", "ltx-video", "mochi-1")] == [
        8,
        8,
        16,
        32,
        8,
    ]
    # One level of 8 channels, one convolution of 9 weights twice in each of 2 blocks, 2 operations a weight.
    small = {"_class_name": "AutoencoderKL", "block_out_channels": [8], "layers_per_block": 1}
    assert decoder_of(small).flops == 2 * 9 * 2 * 2 * 8 * 8


def broken(folder: Path, part: str, **changes: object) -> Path:
    path = folder / part / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return folder


def test_what_can_not_be_planned(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no folder nowhere.*flux.1-dev"):
        network_of("nowhere")
    with pytest.raises(InputError, match="UNet2DConditionModel, which can't be planned"):
        network_of(broken(folder, "transformer", _class_name="UNet2DConditionModel"))
    with pytest.raises(InputError, match="lacks 'num_layers'"):
        network_of(broken(folder, "transformer", _class_name="FluxTransformer2DModel", num_layers=None))
    (folder / "transformer" / "config.json").write_text("[]")
    with pytest.raises(InputError, match="not as diffusers or transformers write it"):
        network_of(folder)
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(InputError, match="transformer or a VAE"):
        network_of(folder)
    with pytest.raises(InputError, match="no diffusers pipeline"):
        network_of(tmp_path)


def test_a_hub_id_that_can_not_be_reached() -> None:
    with pytest.raises(InputError, match=r"no model_index\.json that can be read"):
        network_of("nobody/nothing")
