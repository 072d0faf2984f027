"""The repeated transformer blocks of a denoiser: where they are and what their forward returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from fewstep.models.families import Outputs, family


@dataclass(frozen=True)
class Block:
    """One repeated block.

    Attributes:
        path: its dotted name in the denoiser, like `transformer_blocks.0`.
        module: the block itself.
        outputs: what its forward returns; None when no entry in `families.py` tells.
    """

    path: str
    module: nn.Module
    outputs: Outputs | None


def find_blocks(denoiser: nn.Module) -> list[Block]:
    """The main stream's blocks in the order of the module tree; empty when the tree has no repeated blocks."""
    facts = family(type(denoiser).__name__.removeprefix("FSDP"))  # which sharding puts before it
    outputs = dict(facts.outputs)
    paths = [path for path in facts.block_lists if isinstance(_submodule(denoiser, path), nn.ModuleList)]
    lists = [(path, denoiser.get_submodule(path)) for path in paths] or _block_lists(denoiser)
    return [
        Block(f"{path}.{i}", block, outputs.get(type(block).__name__))
        for path, modules in lists
        for i, block in enumerate(modules.children())
    ]


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:  # the entry was written for another version of the class
        return None


def _block_lists(denoiser: nn.Module) -> list[tuple[str, nn.Module]]:
    """ModuleLists of what the class calls repeated, else the outermost lists of one class named a block or layer."""
    repeated = frozenset(getattr(denoiser, "_repeated_blocks", None) or ())
    named = list(_outermost(denoiser, "", lambda block: type(block).__name__ in repeated))
    return named or list(_outermost(denoiser, "", _looks_like_a_block))


def _looks_like_a_block(module: nn.Module) -> bool:
    named_so = type(module).__name__.endswith(("Block", "Layer", "DecoderLayer"))
    return named_so and sum(isinstance(part, nn.Linear) for part in module.modules()) >= 2


def _outermost(module: nn.Module, path: str, is_block: Callable[[nn.Module], bool]) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        members = list(child.children())
        one_class = len({type(member) for member in members}) == 1
        if isinstance(child, nn.ModuleList) and one_class and is_block(members[0]):
            yield child_path, child
        else:
            yield from _outermost(child, child_path, is_block)
