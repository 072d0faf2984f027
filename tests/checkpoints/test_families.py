"""The tables of names, against diffusers' own conversion of single files and against themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils
from torch import Tensor

from fewstep.checkpoints.checkpoint import Checkpoint
from fewstep.checkpoints.families import FLUX, ORIGINAL_NAMES, from_ours, from_theirs
from fewstep.checkpoints.parts import groups
from tests.checkpoints.making import FAMILIES, tensors_of

THEIRS: dict[str, Any] = {
    "flux2": single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers,
    "wan": single_file_utils.convert_wan_transformer_to_diffusers,
}


def original_names(family: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(tensors under the original code's names by our tables, under diffusers' names)."""
    model, _, tensors = tensors_of(family)
    checkpoint = Checkpoint(model, {}, tensors, {})
    made = groups(checkpoint, ORIGINAL_NAMES[model], lambda path, q: {})
    return {name: tensor for group in made for name, tensor in group.make().items()}, tensors


@pytest.mark.parametrize("family", THEIRS)
def test_diffusers_reads_the_names_that_we_write(family: str) -> None:
    theirs, ours = original_names(family)
    read = THEIRS[family](dict(theirs))
    assert read.keys() == ours.keys()
    assert all(torch.equal(read[name], ours[name]) for name in ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_goes_there_and_back(family: str) -> None:
    model, _, tensors = tensors_of(family)
    for name in tensors:
        place = from_ours(name, ORIGINAL_NAMES[model])
        assert place is not None, name
        assert from_theirs(place.theirs + place.leaf, ORIGINAL_NAMES[model]) == place


def test_fused_parts_and_swapped_halves_are_known() -> None:
    qkv = from_theirs("double_blocks.12.img_attn.qkv.bias", FLUX)
    assert qkv is not None
    assert qkv.ours[1] + qkv.leaf == "transformer_blocks.12.attn.to_k.bias"
    last = from_ours("norm_out.linear.weight", FLUX)
    assert last is not None
    assert last.swap
    assert from_theirs("blocks.0.attn.qkv", FLUX) is None
