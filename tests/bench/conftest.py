"""A pipeline small enough to be timed in a test: real calls, one linear layer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn


class Toy:
    """Called as a pipeline; each step runs the transformer once for each guidance branch."""

    def __init__(self) -> None:
        self.transformer = nn.Linear(16 * 16 * 3, 16 * 16 * 3)
        nn.init.normal_(self.transformer.weight, std=0.02, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(self.transformer.bias)
        self.components = {"transformer": self.transformer}
        self.device = torch.device("cpu")
        self.calls: list[tuple[tuple[str, ...], int]] = []

    @torch.no_grad()
    def __call__(self, prompt: list[str], generator: list[torch.Generator], num_inference_steps: int = 20,
                 guidance: bool = True, output_type: str = "np") -> Any:  # fmt: skip
        assert output_type == "np"
        self.calls.append((tuple(prompt), num_inference_steps))
        x = torch.stack([torch.rand(16 * 16 * 3, generator=one) for one in generator])
        for _ in range(num_inference_steps):
            for _ in range(1 + guidance):
                x = x + self.transformer(x) / num_inference_steps
        return SimpleNamespace(images=x.sigmoid().reshape(-1, 16, 16, 3).numpy())


@pytest.fixture
def toys() -> list[Toy]:
    """Every toy that `new_toy` made."""
    return []


@pytest.fixture
def new_toy(toys):
    def new() -> Toy:
        toys.append(Toy())
        return toys[-1]

    return new
