"""Repeated blocks are found in listed families, in those that only the class tells, and in those that nothing tells."""

from __future__ import annotations

import pytest
from torch import nn

from fewstep.models.blocks import find_blocks
from fewstep.models.families import FAMILIES, IMAGE_FIRST, TENSOR, TEXT_FIRST
from tests.models import tiny

FOUND = {
    "flux": [("transformer_blocks.0", TEXT_FIRST), ("single_transformer_blocks.0", TEXT_FIRST)],
    "flux2": [("transformer_blocks.0", TEXT_FIRST), ("single_transformer_blocks.0", TENSOR)],
    "sd3": [("transformer_blocks.0", TEXT_FIRST), ("transformer_blocks.1", TEXT_FIRST)],
    "wan": [("blocks.0", TENSOR), ("blocks.1", TENSOR)],
    "ltx": [("transformer_blocks.0", TENSOR)],
    "pixart": [("transformer_blocks.0", TENSOR), ("transformer_blocks.1", TENSOR)],
    "sana": [("transformer_blocks.0", TENSOR)],
    "qwen_image": [("transformer_blocks.0", TEXT_FIRST), ("transformer_blocks.1", TEXT_FIRST)],
    "cogvideox": [("transformer_blocks.0", IMAGE_FIRST)],
    "hunyuan_video": [("transformer_blocks.0", IMAGE_FIRST), ("single_transformer_blocks.0", IMAGE_FIRST)],
    "dit": [("transformer_blocks.0", TENSOR), ("transformer_blocks.1", TENSOR)],
    "mochi": [("transformer_blocks.0", IMAGE_FIRST), ("transformer_blocks.1", IMAGE_FIRST)],
    "z_image": [("layers.0", TENSOR)],
}


@pytest.mark.parametrize("name", FOUND)
def test_blocks_of_families(name: str) -> None:
    pipe, _ = tiny.PIPELINES[name]()
    blocks = find_blocks(pipe.transformer)
    assert [(block.path, block.outputs) for block in blocks] == FOUND[name]
    assert all(pipe.transformer.get_submodule(block.path) is block.module for block in blocks)


def test_blocks_deep_in_a_unet() -> None:
    paths = [block.path for block in find_blocks(tiny.unet())]
    assert paths == [
        "down_blocks.1.attentions.0.transformer_blocks.0",
        "up_blocks.0.attentions.0.transformer_blocks.0",
        "up_blocks.0.attentions.1.transformer_blocks.0",
        "mid_block.attentions.0.transformer_blocks.0",
    ]


class OddBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.trunk = nn.ModuleList([OddBlock(), OddBlock()])


def test_blocks_of_a_class_that_is_not_listed() -> None:
    blocks = find_blocks(Odd())
    assert [(block.path, block.outputs) for block in blocks] == [("trunk.0", None), ("trunk.1", None)]


def test_a_tree_without_repeated_blocks_has_none() -> None:
    assert find_blocks(nn.Linear(2, 2)) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_every_listed_family_is_a_class_of_diffusers(name: str) -> None:
    import diffusers

    assert hasattr(diffusers, name)
