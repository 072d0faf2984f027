"""What `zoo:moving-shapes` is trained on: clips drawn from seeds, their latents, and the tokens of their prompts.

Scene `i` is `sample_scene(default_rng(i))`. Clips are drawn when they are needed: they would fill gigabytes, and one
takes 2 ms.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from fewstep.zoo.moving.render import render
from fewstep.zoo.moving.scenes import sample_scene


def clips(seeds: Iterable[int], device: str) -> Tensor:
    """The clips of these scenes, float (n, 3, 17, 64, 64) in [-1, 1]."""
    drawn = np.stack([render(sample_scene(np.random.default_rng(seed))) for seed in seeds])
    moved = torch.from_numpy(drawn).to(device).permute(0, 4, 1, 2, 3)
    return moved.mul(2).sub(1).contiguous(memory_format=torch.channels_last_3d)
