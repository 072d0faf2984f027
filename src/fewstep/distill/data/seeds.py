"""Seeds derived from names, so that a random draw depends on what it is for and on nothing that ran before."""

from __future__ import annotations

from hashlib import blake2b

import torch


def derive(*parts: object) -> int:
    """A seed in [0, 2⁶³) from names and numbers: the same for the same parts, unrelated for others."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator seeded with `derive(*parts)`: on the CPU, so that every device trains on the same numbers."""
    return torch.Generator().manual_seed(derive(*parts))
