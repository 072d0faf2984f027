"""The layers of a pipeline's components, and why a layer is left as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch.nn.modules.conv as convolutions
from torch import nn

from fewstep.models.blocks import find_blocks
from fewstep.models.families import family
from fewstep.models.model import Model
from fewstep.numerics.schemes import Scheme
from fewstep.techniques.linears.kernels import Tile

ADAPTER = frozenset({"lora_A", "lora_B"})  # peft's names for the two small matrices beside a layer


@dataclass(frozen=True)
class Layer:
    """One linear layer or convolution; `skipped` says why it is left alone, None when it is quantized.

    Attributes:
        component: the pipeline's name for the module that it is in.
        root: that module.
        path: of the layer in `root`.
        module: the layer itself.
        scheme: what it is to be quantized with.
    """

    component: str
    root: nn.Module
    path: str
    module: nn.Module
    scheme: Scheme
    skipped: str | None

    @property
    def name(self) -> str:
        return f"{self.component}.{self.path}"

    @property
    def linear(self) -> nn.Linear:
        assert isinstance(self.module, nn.Linear)
        return self.module


@dataclass(frozen=True)
class Rules:
    """What keeps a layer precise.

    Attributes:
        skip: substrings of layer paths.
        least: the fewest features on either side.
        keep: full names of layers, which then take the place of all hints; None: the hints hold.
    """

    skip: tuple[str, ...]
    least: int
    keep: tuple[str, ...] | None


def skip_reason(path: str, shape: tuple[int, ...], *, skip: tuple[str, ...], least: int, tile: Tile) -> str | None:
    """Why the linear layer at `path`, of `shape` (out, in), can't be quantized; None when it can.

    `skip` holds substrings of paths; `least` is the fewest features on either side; out and in must be multiples of
    `tile`.
    """
    if not ADAPTER.isdisjoint(path.split(".")):
        return "of a LoRA adapter"
    if any(part in path for part in skip):
        return "named in 'skip'"
    if min(shape) < least:
        return f"smaller than {least}"
    if any(size % side for size, side in zip(shape, tile, strict=True)):
        return f"no multiple of {tile[0]}×{tile[1]}"
    return None


def hint(path: str, *, blocks: tuple[str, ...], keep: tuple[str, ...]) -> str | None:
    """Why a layer should stay precise as far as one can tell without measuring; None when nothing speaks for it.

    Outside the blocks are the layers through which every token or the whole time embedding passes: they cost little,
    and an error there reaches everything. `blocks` are the paths of the blocks, with their dot; `keep` holds
    substrings of paths that the model's family names.
    """
    if not path.startswith(blocks):
        return "outside the blocks"
    return "named by the model's family" if any(part in path for part in keep) else None


def left_alone(layers: Iterable[Layer]) -> dict[str, int]:
    """Why layers are left as they are -> how many."""
    return dict(Counter(layer.skipped for layer in layers if layer.skipped))


def why_none(layers: Iterable[Layer]) -> str:
    """For a sentence about layers of which none is quantized."""
    reasons = left_alone(layers).items()
    return ", ".join(f"{reason} ({count})" for reason, count in reasons) or "it has no linear layer"


def find_layers(
    model: Model, component: str, scheme: Scheme, rules: Rules, tile: Callable[[Scheme], Tile]
) -> Iterator[Layer]:
    """Every plain linear layer and convolution of a pipeline's component, with what happens to it."""
    return layers_of(model.modules[component], component, scheme, rules, tile(scheme), hints_of(model, component))


def layers_of(
    root: nn.Module, component: str, scheme: Scheme, rules: Rules, tile: Tile, hints: Callable[[str], str | None]
) -> Iterator[Layer]:
    """The same of one module, which may be on the meta device."""
    for path, part in root.named_modules():
        name = f"{component}.{path}"
        if isinstance(part, convolutions._ConvNd):
            yield Layer(component, root, path, part, scheme, "a convolution")
        elif type(part) is nn.Linear:
            reason = skip_reason(path, part.weight.shape, skip=rules.skip, least=rules.least, tile=tile)
            named = "named in 'keep'" if name in (rules.keep or ()) else None
            precise = hints(path) if rules.keep is None else named
            yield Layer(component, root, path, part, scheme, precise or reason)


def hints_of(model: Model, component: str) -> Callable[[str], str | None]:
    """`hint` for the layers of a pipeline's component."""
    return hints_in(model.modules[component], denoises=component in model.denoisers)


def hints_in(root: nn.Module, *, denoises: bool) -> Callable[[str], str | None]:
    """`hint` for the layers of one module; in one that does not denoise and has no blocks, none is outside."""
    blocks = tuple(f"{block.path}." for block in find_blocks(root))
    if denoises:
        return partial(hint, blocks=blocks, keep=family(type(root).__name__).keep)
    return partial(hint, blocks=blocks or ("",), keep=())
