"""Telling the student's samples from real ones: heads on the features of a denoiser's blocks, or a network of its own.

A denoiser's blocks know what images look like at every noise level and under the condition (arXiv 2403.12015), so small
heads on what they return make a discriminator, over the frozen teacher or over a critic. Features are read by wrapping
the blocks for one call: the denoiser is used as it is, whatever its class.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fewstep.diffusion.schedule import Time
from fewstep.distill.engine.lora import Adapter
from fewstep.distill.engine.precision import uncompiled
from fewstep.distill.engine.roles import Swappable
from fewstep.errors import InputError, bad_value
from fewstep.models.blocks import find_blocks
from fewstep.models.hooks import wrapped


def tap_paths(module: nn.Module, count: int = 4) -> tuple[str, ...]:
    """The names of `count` of its repeated blocks, evenly spread, the last among them; all where it has fewer.

    Raises:
        InputError: count < 1, or no repeated blocks.
    """
    paths = [block.path for block in find_blocks(_network(module))]
    if not paths:
        raise InputError(
            f"{type(module).__name__} has no repeated blocks to take features from: name modules of it as 'features'."
        )
    if count < 1:
        raise InputError(bad_value("count", "a discriminator's features", "at least 1", count))
    count = min(count, len(paths))
    return tuple(paths[(i + 1) * len(paths) // count - 1] for i in range(count))


def tapped(
    denoiser: Swappable, paths: Sequence[str], x_t: Tensor, t: Time, cond: Any = None
) -> tuple[Tensor, list[Tensor]]:
    """The prediction at x_t, and what the modules of these names returned on the way.

    A block of several streams gives its image stream, where `models.families` tells which that is, else the largest
    tensor. These modules run uncompiled.

    Raises:
        InputError: there is no such module, or it did not run exactly once.
    """
    module = _network(denoiser.module)
    streams = {block.path: block.outputs.hidden for block in find_blocks(module) if block.outputs is not None}
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}

    def record(path: str) -> Any:
        def call(forward: Any, *args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            seen[path].append(_stream(output, streams.get(path)))
            return output

        return call

    with ExitStack() as stack:
        parts = [_part(module, path) for path in paths]
        for path, part in zip(paths, parts, strict=True):
            stack.enter_context(wrapped(part, record(path)))
        with uncompiled(module, around=parts), uncompiled(denoiser.module, around=parts):
            prediction = denoiser(x_t, t, cond)
    for path, found in seen.items():
        if len(found) != 1:
            raise InputError(f"{path!r} of {type(module).__name__} ran {len(found)} times in one call, not once.")
    return prediction, [found[0] for found in seen.values()]


def _network(module: nn.Module) -> nn.Module:
    """Where the blocks are: of an adapter, in its backbone, which runs in the adapter's role."""
    return module.backbone.module if isinstance(module, Adapter) else module


def _part(module: nn.Module, path: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        raise InputError(f"{type(module).__name__} has no part {path!r} to take features from.") from None


def _stream(output: Any, place: int | None) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if place is not None:
        chosen: Tensor = output[place]
        return chosen
    return max((one for one in output if isinstance(one, Tensor)), key=Tensor.numel)


def tokens(feature: Tensor) -> Tensor:
    """(batch, tokens, channels) from that, from (batch, channels), or from (batch, channels, height, width[, …])."""
    if feature.dim() == 2:
        return feature[:, None]
    return feature if feature.dim() == 3 else feature.flatten(2).transpose(1, 2)


class Heads(nn.Module):
    """A small network for each feature that judges every token of it: features -> logits (batch, all tokens).

    `channels`: of each feature. Noise level and condition are in the features already.
    """

    def __init__(self, channels: Sequence[int], width: int = 64) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(one), nn.Linear(one, width), nn.SiLU(), nn.Linear(width, 1)) for one in channels
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return torch.cat([head(tokens(one))[..., 0] for head, one in zip(self.heads, features, strict=True)], dim=1)


class Discriminator(Protocol):
    """Tells real from made at a noise level, in two halves: `features` of x_t, and `logits` (batch, n) of these."""

    @property
    def module(self) -> nn.Module:
        """What is trained."""
        ...

    @property
    def backbone(self) -> nn.Module | None:
        """What makes the features and is not trained with it, if anything."""
        ...

    def features(self, x_t: Tensor, t: Tensor, cond: Any) -> list[Tensor]: ...

    def logits(self, features: Sequence[Tensor], t: Tensor, cond: Any) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class FeatureDiscriminator:
    """Heads over the features of a denoiser's modules; make it by `over`."""

    denoiser: Swappable
    paths: tuple[str, ...]
    heads: nn.Module

    @classmethod
    def over(
        cls,
        denoiser: Swappable,
        x_t: Tensor,
        t: Time,
        cond: Any = None,
        *,
        paths: Sequence[str] | None = None,
        width: int = 64,
        seed: int = 0,
    ) -> FeatureDiscriminator:
        """New heads for these modules of the denoiser, None: `tap_paths`. Its guidance is left out.

        One call at (x_t, t, cond), any example of a batch, tells how wide the features are.
        """
        bare, paths = denoiser.with_module(denoiser.module), tuple(paths or tap_paths(denoiser.module))
        with torch.no_grad():
            _, found = tapped(bare, paths, x_t, t, cond)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            heads = Heads([tokens(one).shape[2] for one in found], width).to(x_t.device)
        return cls(bare, paths, heads)

    @property
    def module(self) -> nn.Module:
        return self.heads

    @property
    def backbone(self) -> nn.Module | None:
        return self.denoiser.module

    def features(self, x_t: Tensor, t: Tensor, cond: Any) -> list[Tensor]:
        return [one.float() for one in tapped(self.denoiser, self.paths, x_t, t, cond)[1]]

    def logits(self, features: Sequence[Tensor], t: Tensor, cond: Any) -> Tensor:
        logits: Tensor = self.heads(features)
        return logits.float()


@dataclass(frozen=True, eq=False)
class OwnDiscriminator:
    """A network of its own, called as `module(x_t, t, cond)` with t (batch,): gives logits (batch,) or (batch, n)."""

    module: nn.Module
    backbone: None = None

    def features(self, x_t: Tensor, t: Tensor, cond: Any) -> list[Tensor]:
        return [x_t]

    def logits(self, features: Sequence[Tensor], t: Tensor, cond: Any) -> Tensor:
        (x_t,) = features
        logits: Tensor = self.module(x_t, t.to(x_t), cond)
        return logits.float().reshape(len(x_t), -1)
