"""The view of a pipeline: what denoises, what encodes text, what decodes."""

from __future__ import annotations

import torch

from fewstep.models.model import Model
from fewstep.zoo.shapes.pipeline import build_pipeline
from tests.models import tiny


def test_parts_of_a_pipeline() -> None:
    pipe = build_pipeline()
    model = Model(pipe)
    assert model.denoisers == {"transformer": pipe.transformer}
    assert model.text_encoders == {"text_encoder": pipe.text_encoder, "text_encoder_2": pipe.text_encoder_2}
    assert model.vae is pipe.vae
    assert model.manifest is None
    assert [block.path for block in model.blocks("transformer")][:2] == [
        "transformer_blocks.0",
        "single_transformer_blocks.0",
    ]
    assert model.family("transformer").block_lists == ("transformer_blocks", "single_transformer_blocks")


def test_both_transformers_of_a_pair() -> None:
    pipe, _ = tiny.wan_two()
    assert list(Model(pipe).denoisers) == ["transformer", "transformer_2"]
    assert Model(pipe).vae is None


def test_a_unet() -> None:
    pipe, _ = tiny.sd15()
    assert list(Model(pipe).denoisers) == ["unet"]


def test_a_denoiser_of_no_known_class_is_known_by_its_name() -> None:
    pipe, _ = tiny.flux_off()
    pipe.transformer = torch.nn.Linear(2, 2)
    assert list(Model(pipe).denoisers) == ["transformer"]
