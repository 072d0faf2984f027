"""Sets whose samples are their own numbers: what the tests of storing and reading share."""

from __future__ import annotations

import torch

from fewstep.distill.data.samples import Index, PathSet
from fewstep.distill.data.store import Sizes, fill, samples_of

SHARDS = ("shard-00000.safetensors", "shard-00001.safetensors", "shard-00002.safetensors")  # of the 14 samples below


def numbered(samples=14, times=(1.0, 0.0), **other):
    """The index of a set whose sample i has the states (i, i + 0.5, …) and the condition i % 3."""
    content = "paths" if len(times) > 1 else "latents"
    return Index(content, times, {"prompts": samples, "shape": [2], **other})


class Maker:
    """Makes numbered samples, and counts which."""

    def __init__(self, times=2):
        self.times, self.made = times, []

    def __call__(self, samples):
        self.made.extend(samples)
        numbers = torch.tensor(list(samples))
        states = numbers[:, None] + torch.arange(self.times) / 2
        return samples_of({"": numbers % 3}, states[..., None].expand(-1, -1, 2).float())


def store(folder, index=None, sizes=None):
    """Fill the folder; returns the numbers that were made."""
    index, maker = index or numbered(), Maker()
    maker.times = len(index.times)
    fill(folder, index, maker, sizes or Sizes(batch=4, shard=6), show=False)
    return maker.made


def opened(folder, steps=None):
    return PathSet(folder, torch.zeros(1, dtype=torch.long), steps)


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(data[:-5])
    elif how == "bit":
        data[-1] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
