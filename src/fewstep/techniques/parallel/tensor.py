"""Tensor parallelism: each process has a part of the features of a block's layers, as `cuts` plans it.

Each kind of block is held against itself once: in parts, and with the parts put together. Quantized layers are cut as
they are: their codes are those of the whole weight, and for that check alone their inputs are not rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.models.blocks import Block
from fewstep.models.hooks import wrapped
from fewstep.models.model import Model
from fewstep.techniques.base import undo_all
from fewstep.techniques.linears.kernels import held_by, hold, is_quantized, stored_bytes
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
        quantized = self._quantized(block)
        exact = partial(_exactly, type(block.module).forward, block.module, quantized)
        try:
            parts = forward(*args, **kwargs)
        except (RuntimeError, ValueError, IndexError) as error:
            raise FewstepError(f"{what} does not run on a part of its features (tensor): {error}") from error
        again = exact(*args, **kwargs) if quantized else parts
        self._undo.pop(block.path)()
        whole = exact(*args, **kwargs)
        self._cut(block)
        pairs = zip(*(out if isinstance(out, tuple) else (out,) for out in (whole, again)), strict=True)
        if not all(same_enough(*pair) for pair in pairs if isinstance(pair[0], Tensor)):
            raise FewstepError(f"{what} gives something else in parts than whole: leave 'tensor' out.")
        self.facts["kinds_checked"] += 1
        return parts

    def _quantized(self, block: Block) -> list[nn.Module]:
        """Of the layers that are cut."""
        paths = (cut.path for unit in self._plans[block.path].units for cut in unit.cuts)
        return list(filter(is_quantized, map(block.module.get_submodule, paths)))

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
        if isinstance(layer, nn.RMSNorm | RMSNorm):
            self._keep_part(layer, "weight", cut, steps)
            owner, _, name = cut.path.rpartition(".")
            over_all = NormOverAll(layer, self._sums).train(layer.training)
            _set(block.get_submodule(owner), name, over_all, steps)
            return
        if is_quantized(layer):
            self._hold_part(layer, cut, steps)
        else:
            self._keep_part(layer, "weight", cut, steps)
            self._keep_part(layer, "bias", cut, steps)
            _set(layer, FEATURES[cut.axis], getattr(layer, FEATURES[cut.axis]) // self._parts, steps)
        if cut.axis == 1:
            steps.append(layer.register_forward_hook(summed(self._sums.number)).remove)

    def _keep_part(self, layer: Any, name: str, cut: Cut, steps: list[Callable[[], None]]) -> None:
        """It stays the same parameter, and its whole is freed. Of a sum one process has the bias, and the others 0."""
        value = getattr(layer, name)
        if value is None:
            return
        if name == "weight" or cut.axis == 0:
            steps.append(partial(self._restore, value, cut))
            value.data = cut.own(value.data, cut.axis, self._rank, self._parts)
        elif self._rank:
            steps.append(partial(_put_back, value, value.data))
            value.data = torch.zeros_like(value.data)

    def _hold_part(self, layer: nn.Module, cut: Cut, steps: list[Callable[[], None]]) -> None:
        """The same of a quantized layer."""
        held = held_by(layer)
        assert held is not None
        bias = held.bias if cut.axis == 1 and self._rank else None
        own = held.along(cut.axis, partial(cut.own, rank=self._rank, parts=self._parts))
        hold(layer, own if bias is None else replace(own, bias=torch.zeros_like(bias)))
        steps.append(partial(self._hold_whole, layer, cut, bias))

    def _hold_whole(self, layer: nn.Module, cut: Cut, bias: Tensor | None) -> None:
        part = held_by(layer)
        assert part is not None
        whole = part.along(cut.axis, partial(cut.whole, group=self._group))
        hold(layer, whole if bias is None else replace(whole, bias=bias.to(whole.weight.codes.device)))

    def _restore(self, parameter: nn.Parameter, cut: Cut) -> None:
        parameter.data = cut.whole(parameter.data, cut.axis, self._group)

    def _bytes(self) -> int:
        return sum(stored_bytes(block.module) for block in self._blocks)


def _exactly(forward: Callable[..., Any], module: nn.Module, layers: list[nn.Module], *args: Any, **kwargs: Any) -> Any:
    """A block's output with nothing rounded in these quantized layers but their weights."""
    with ExitStack() as gates:
        for layer in layers:
            gates.enter_context(wrapped(layer, partial(_product, layer)))
        return forward(module, *args, **kwargs)


def _product(layer: nn.Module, forward: Callable[..., Any], x: Tensor) -> Tensor:
    held = held_by(layer)
    assert held is not None
    return held.product(x)


def _put_back(parameter: nn.Parameter, data: Tensor) -> None:
    parameter.data = data.to(parameter.data)  # where the model was moved to since


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


@cache  # the same hook for all layers of a denoiser, so that compiled blocks are one graph
def summed(number: int) -> Callable[..., Tensor]:
    """A hook that sums a layer's output over the processes that have its other inputs."""

    def hook(module: nn.Module, args: Any, part: Tensor) -> Tensor:
        whole: Tensor = sum_over_processes(part, number)
        return whole

    return hook


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
