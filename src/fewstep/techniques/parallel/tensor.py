"""Tensor parallelism: each process has a part of the features of a block's layers, as `cuts` plans it.

Each kind of block is held against itself once: in parts, and with the parts put together.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.models.blocks import Block
from fewstep.models.hooks import wrapped
from fewstep.models.model import Model
from fewstep.techniques.base import undo_all
from fewstep.techniques.parallel.cuts import Cut, plan, uncuttable
from fewstep.techniques.parallel.groups import rank_in, same_enough, size_of

NUMBERS = ("heads", "kv_heads", "inner_dim", "inner_kv_dim", "kv_inner_dim", "mlp_hidden_dim")  # of what is there
FEATURES = ("out_features", "in_features")  # by the axis of a weight


class TensorDenoiser:
    """The blocks of one denoiser, of whose layers this process has a part. What can't be cut is a FewstepError."""

    def __init__(self, model: Model, name: str, group: Any) -> None:
        self._name, self._group, self._blocks = name, group, model.blocks(name)
        self._rank, self._parts = rank_in(group), size_of(group)
        if problems := uncuttable(model, name, self._parts):
            raise FewstepError(" ".join(problems))
        plans = {block.path: plan(block.module, self._parts, model.family(name).keep) for block in self._blocks}
        kinds = {(type(block.module), plans[block.path]): block for block in reversed(self._blocks)}
        whole = [(f"{at.rpartition('.')[0]}.*.{path}", why) for at, one in plans.items() for path, why in one.whole]
        self._plans, self._unchecked = plans, list(kinds.values())
        self._undo: dict[str, Callable[[], None]] = {}
        self.facts: dict[str, Any] = {
            "layers": sum(len(unit.cuts) for one in plans.values() for unit in one.units),
            "layers_whole": len(whole),
            "whole": dict(whole),
            "bytes_before": self._bytes(),
            "bytes_sent": 0,
            "kinds_of_blocks": len(kinds),
            "kinds_checked": 0,
        }
        self._sums = Sums(group, self.facts)

    def install(self) -> TensorDenoiser:
        for block in self._blocks:
            self._cut(block)
        self.facts["bytes_after"] = self._bytes()
        return self

    def remove(self) -> None:
        """Put the parts of all processes together, to the bit. All of them must ask."""
        if self._undo and not dist.is_initialized():
            raise FewstepError(f"Call remove() before the processes part: the rest of the {self._name} is gone.")
        while self._undo:
            self._undo.popitem()[1]()

    def call(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The denoiser's output; the first time, each kind of block is held against itself on the way."""
        if torch.compiler.is_compiling():  # all of it is one graph
            return forward(*args, **kwargs)
        blocks, self._unchecked = self._unchecked, []
        with ExitStack() as gates:
            for block in blocks:
                gates.enter_context(wrapped(block.module, partial(self._checked, block)))
            return forward(*args, **kwargs)

    def _checked(self, block: Block, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        what = f"The {type(block.module).__name__} of the {self._name}"
        try:
            parts = forward(*args, **kwargs)
        except (RuntimeError, ValueError, IndexError) as error:
            raise FewstepError(f"{what} does not run on a part of its features (tensor): {error}") from error
        self._undo.pop(block.path)()
        whole = type(block.module).forward(block.module, *args, **kwargs)
        self._cut(block)
        pairs = zip(*(out if isinstance(out, tuple) else (out,) for out in (whole, parts)), strict=True)
        if not all(same_enough(*pair) for pair in pairs if isinstance(pair[0], Tensor)):
            raise FewstepError(f"{what} gives something else in parts than whole: leave 'tensor' out.")
        self.facts["kinds_checked"] += 1
        return parts

    def _cut(self, block: Block) -> None:
        steps: list[Callable[[], None]] = []
        self._undo[block.path] = undo_all(steps)
        for unit in self._plans[block.path].units:
            for cut in unit.cuts:
                self._cut_layer(block.module, cut, steps)
            if unit.heads:
                attention = block.module.get_submodule(unit.path)
                for name in NUMBERS:
                    if type(number := getattr(attention, name, None)) is int:
                        _set(attention, name, number // self._parts, steps)
                rotations = own_rotations(unit.cuts[0].stretches[0], self._rank, self._parts)
                steps.append(attention.register_forward_pre_hook(rotations, with_kwargs=True).remove)

    def _cut_layer(self, block: nn.Module, cut: Cut, steps: list[Callable[[], None]]) -> None:
        layer: Any = block.get_submodule(cut.path)
        for value in (layer.weight, getattr(layer, "bias", None) if cut.axis == 0 else None):
            if value is not None:  # it stays the same parameter, and its whole is freed
                steps.append(partial(self._restore, value, cut))
                value.data = cut.own(value.data, self._rank, self._parts)
        linear = isinstance(layer, nn.Linear)
        if linear:
            _set(layer, FEATURES[cut.axis], getattr(layer, FEATURES[cut.axis]) // self._parts, steps)
        if not linear or cut.axis == 1:
            owner, _, name = cut.path.rpartition(".")
            summed = Summed(layer, self._sums) if linear else NormOverAll(layer, self._sums)
            _set(block.get_submodule(owner), name, summed.train(layer.training), steps)

    def _restore(self, parameter: nn.Parameter, cut: Cut) -> None:
        parameter.data = cut.whole(parameter.data, self._group)

    def _bytes(self) -> int:
        return sum(value.nbytes for block in self._blocks for value in block.module.parameters())


def _set(owner: nn.Module, name: str, value: Any, steps: list[Callable[[], None]]) -> None:
    steps.append(partial(setattr, owner, name, getattr(owner, name)))
    setattr(owner, name, value)


@cache  # the same hook for all attentions of a width, so that compiled blocks are one graph
def own_rotations(width: int, rank: int, parts: int) -> Callable[..., tuple[Any, Any]]:
    """A hook that gives an attention its part of rotations that go over all heads, as LTX's do: of `width` features."""

    def own(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)([own(part) for part in value])
        over_all = isinstance(value, Tensor) and value.shape[-1] == width
        return value.chunk(parts, -1)[rank] if over_all else value

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {name: own(value) if "rotary" in name else value for name, value in kwargs.items()}

    return hook


class Sums:
    """Sums over the processes of a group; `facts` get the bytes that leave this one, as in a ring."""

    numbers = count()

    def __init__(self, group: Any, facts: dict[str, Any]) -> None:
        self.rank, self.parts, self.number = rank_in(group), size_of(group), next(self.numbers)
        self._group, self._facts = group, facts
        SUMS[self.number] = self

    def of(self, x: Tensor) -> Tensor:
        whole = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole, group=self._group)
        self._facts["bytes_sent"] += 2 * (self.parts - 1) * x.nbytes // self.parts
        return whole


SUMS: WeakValueDictionary[int, Sums] = WeakValueDictionary()


@torch.library.custom_op("fewstep::sum_over_processes", mutates_args=())
def sum_over_processes(x: Tensor, number: int) -> Tensor:
    """One operation of a compiled graph, which so holds no process group and has no break. It has no gradient."""
    return SUMS[number].of(x)


@sum_over_processes.register_fake
def _(x: Tensor, number: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


class Summed(nn.Module):
    """A linear layer of some inputs, summed over the processes that have the others. One of them adds the bias."""

    def __init__(self, linear: nn.Linear, sums: Sums) -> None:
        super().__init__()
        self.weight, self.bias, self._biased, self._number = linear.weight, linear.bias, sums.rank == 0, sums.number
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        part = F.linear(x, self.weight, self.bias if self._biased else None)
        whole: Tensor = sum_over_processes(part, self._number)
        return whole


class NormOverAll(nn.Module):
    """The root mean square norm (arXiv 1910.07467) of features of which each process has as many."""

    def __init__(self, norm: nn.RMSNorm | RMSNorm, sums: Sums) -> None:
        super().__init__()
        self.weight, self.eps, self._parts, self._number = norm.weight, norm.eps, sums.parts, sums.number

    def forward(self, x: Tensor) -> Tensor:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        square = sum_over_processes(exact.square().mean(-1, keepdim=True), self._number) / self._parts
        normed = exact * torch.rsqrt(square + (torch.finfo(x.dtype).eps if self.eps is None else self.eps))
        return (normed if self.weight is None else normed * self.weight).to(x.dtype)
