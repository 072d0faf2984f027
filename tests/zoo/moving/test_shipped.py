"""The video model that comes with fewstep: it runs, with what regions and a cache spare, and draws what is asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fewstep
from fewstep.techniques.cache.budget import psnr_each
from fewstep.zoo.evaluate import evaluate
from fewstep.zoo.tasks import task

CALL = {"prompt": "a red ring moving left", "output_type": "np"}


def test_regions_spare_what_stands_still_and_the_clip_stays() -> None:
    pipe = fewstep.load("zoo:moving-shapes")
    pipe.set_progress_bar_config(disable=True)

    def draw(one: object) -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        return np.asarray(one(**CALL, num_inference_steps=24, generator=generator).frames)  # type: ignore[operator]

    plain = draw(pipe)
    assert plain.shape == (1, 17, 64, 64, 3)
    fast = fewstep.accelerate(pipe, [fewstep.Regions(share=0.25, refresh=3, warmup=0.2)])
    (psnr,) = psnr_each(draw(fast), plain)
    assert 30 < psnr < 80
    times = np.array(fast.engaged[0].facts["computed"]["transformer branch 0"]).reshape(5, 8, 8)
    assert times.max() > 2 * times.mean()  # some tokens are computed far more often than others


@pytest.mark.slow
def test_it_draws_what_is_asked() -> None:
    pipe = fewstep.load("zoo:moving-shapes")
    pipe.set_progress_bar_config(disable=True)
    quality = evaluate(pipe, task("moving-shapes"), prompts=64, show=False)
    assert quality.prompt_accuracy > 0.5
