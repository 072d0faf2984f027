"""Guidance is a weighted sum, and its two common spellings are one."""

from __future__ import annotations

import pytest
import torch

from fewstep.diffusion.guidance import cfg_weights, combine, extra_from_scale, scale_from_extra
from fewstep.errors import InputError

COND, UNCOND = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])


def test_both_spellings_are_the_same_sum():
    branches, extra = {"cond": COND, "uncond": UNCOND}, 3.0
    guided = combine(branches, cfg_weights(scale_from_extra(extra)))
    torch.testing.assert_close(guided, COND + extra * (COND - UNCOND))
    torch.testing.assert_close(guided, UNCOND + 4.0 * (COND - UNCOND))
    assert extra_from_scale(scale_from_extra(extra)) == extra


def test_no_guidance_needs_no_second_branch():
    assert torch.equal(combine({"cond": COND}, cfg_weights(1.0)), COND)


def test_a_missing_branch_is_named():
    with pytest.raises(InputError, match="uncond"):
        combine({"cond": COND}, cfg_weights(2.0))
    with pytest.raises(InputError, match="Guidance needs"):
        combine({"cond": COND}, {})
