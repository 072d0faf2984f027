"""Redraw a part of a picture: what the mask covers is computed at every step, the rest at every fifth.

python examples/edit_with_mask.py
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxInpaintPipeline
from PIL import Image

import fewstep

OLD, NEW = "a large red ring left of a large blue square", "a large red ring left of a large green circle"


def main(out: Path, steps: int) -> None:
    zoo = fewstep.load("zoo:shapes")
    zoo.set_progress_bar_config(disable=True)
    picture = zoo(OLD, num_inference_steps=steps, generator=torch.Generator().manual_seed(4)).images[0]
    mask = Image.new("L", picture.size, 0)
    mask.paste(255, (picture.width // 2, 0, *picture.size))  # the right half

    pipe = FluxInpaintPipeline(**zoo.components)
    pipe.set_progress_bar_config(disable=True)
    call = {"image": picture, "mask_image": mask, "height": 64, "width": 64, "max_sequence_length": 24}
    call |= {"strength": 1.0, "num_inference_steps": steps, "true_cfg_scale": 2.5, "negative_prompt": ""}

    def draw(one: Any) -> tuple[Any, float]:
        start = time.perf_counter()
        return one(NEW, **call, generator=torch.Generator().manual_seed(0)).images[0], time.perf_counter() - start

    whole, slow = draw(pipe)
    fast = fewstep.accelerate(pipe, [fewstep.Regions(warmup=0)])
    region, quick = draw(fast)
    error = np.mean((np.asarray(region, float) - np.asarray(whole, float)) ** 2) / 255**2
    print(f"{slow:.1f} s and {quick:.1f} s; PSNR {-10 * np.log10(error):.1f} dB")
    print(f"the steps: {next(iter(fast.engaged[0].facts['last_request'].values()))}  (# all of it, o the region)")
    sheet = np.concatenate([np.asarray(one) for one in (picture, whole, region)], axis=1)
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/edited.png"))
    parser.add_argument("--steps", type=int, default=28)
    options = parser.parse_args()
    main(options.out, options.steps)
