"""One backbone, many roles: low-rank adapters (LoRA, arXiv 2106.09685) that share the weights they adapt.

Without an adapter the backbone is the teacher; with adapter A it is the student, with B the critic. The backbone is in
memory once and gets no gradient, and only the adapters have optimizer states and averages:

    backbone = Backbone(traced.module, rank=32)
    student = traced.with_module(backbone.adapter(), guided=False)
    critic = traced.with_module(backbone.adapter(), guided=False)

An `Adapter` is a module whose parameters, state and deep copies are the low-rank factors alone, so the loop trains,
averages and saves it like any other. `merged` writes one into a copy of the backbone, `peft_state` as a LoRA file.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.distill.engine.precision import checkpoint_blocks
from fewstep.distill.engine.roles import Swappable
from fewstep.errors import InputError, bad_value
from fewstep.models.hooks import Hook, Hooks


class Adapter(nn.Module):
    """Low-rank factors for linear layers of a backbone: y = W·x + scale·B·(A·x), B = 0 at the start.

    Called like the backbone. `A` (rank, inputs) and `B` (outputs, rank) of the layer at path "a.b" are the parameters
    "down.a/b" and "up.a/b", in float32 whatever the backbone's dtype.
    """

    def __init__(self, backbone: Backbone, rank: int, scale: float) -> None:
        super().__init__()
        self.backbone, self.rank, self.scale = backbone, rank, scale
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for path, linear in backbone.linears.items():
            device = linear.weight.device
            down = torch.empty(rank, linear.in_features, device=device)
            nn.init.kaiming_uniform_(down, a=5**0.5)
            self.down[_key(path)] = nn.Parameter(down)
            self.up[_key(path)] = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.backbone.wearing(self):
            return self.backbone.module(*args, **kwargs)

    def added(self, path: str, x: Tensor) -> Tensor:
        """What it adds to the output of the layer at `path`, in the dtype of x."""
        key = _key(path)
        return self.scale * F.linear(F.linear(x, self.down[key].to(x.dtype)), self.up[key].to(x.dtype))

    @property
    def shared_network(self) -> nn.Module:
        """What runs in this role."""
        return self.backbone.module

    def __getattr__(self, name: str) -> Any:
        """Pipelines ask a denoiser for its config and dtype: those of the backbone."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("config", "dtype", "device"):
                return getattr(self.backbone.module, name)
            raise


class Backbone:
    """A module, frozen, whose linear layers adapters can be put on. Shared, never copied: `deepcopy` gives itself.

    Args:
        module: gets no gradients from here on.
        rank: of the adapters.
        scale: of what they add; LoRA's alpha / rank.
        targets: paths of linear layers; None: all that lie in lists of repeated blocks.

    Raises:
        InputError: a rank below 1, a target that is no linear layer, or no layer to adapt.
    """

    def __init__(
        self, module: nn.Module, rank: int = 32, *, scale: float = 1.0, targets: Sequence[str] | None = None
    ) -> None:
        if rank < 1:
            raise InputError(bad_value("rank", "a LoRA adapter", "at least 1", rank))
        self.module, self.rank, self.scale = module.requires_grad_(False), rank, scale
        self.linears = _linears(module, targets)
        self._worn: Adapter | None = None
        self._hooks = Hooks(Hook(linear, partial(self._run, path)) for path, linear in self.linears.items()).install()
        self._checkpoint_by_role()

    def __deepcopy__(self, memo: dict[int, Any]) -> Backbone:
        return self

    def adapter(self) -> Adapter:
        """A new role: at first exactly the backbone."""
        return Adapter(self, self.rank, self.scale)

    @contextmanager
    def wearing(self, adapter: Adapter | None) -> Iterator[None]:
        """The backbone in this role inside the block; None: as it is, the teacher."""
        before, self._worn = self._worn, adapter
        try:
            yield
        finally:
            self._worn = before

    @contextmanager
    def plain(self) -> Iterator[nn.Module]:
        """The module without our hooks inside the block: so it can be copied, for a hook stays the original's."""
        self._hooks.remove()
        try:
            yield self.module
        finally:
            self._hooks.install()

    def _run(self, path: str, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        y = forward(x)
        return y if self._worn is None else y + self._worn.added(path, x)

    def _checkpoint_by_role(self) -> None:
        """Activation checkpointing recomputes in the backward pass, when the role is over: recompute in the same."""
        enable = getattr(self.module, "enable_gradient_checkpointing", None)
        if enable is None or not getattr(self.module, "is_gradient_checkpointing", False):
            return

        def in_role(block: nn.Module, *args: Any) -> Any:
            worn = self._worn
            return checkpoint(
                block.__call__, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), self.wearing(worn))
            )

        enable(in_role)


@dataclass(frozen=True, eq=False)
class Shared:
    """Roles (`roles.Roles`) that are adapters on the teacher's own module."""

    teacher: Swappable
    backbone: Backbone

    @classmethod
    def over(cls, teacher: Swappable, rank: int, checkpointing: bool = False) -> Shared:
        """Freezes the teacher's module and puts hooks on it; with `checkpointing` roles keep no activations in blocks.

        Raises:
            InputError: it can't do without them.
        """
        if checkpointing:
            checkpoint_blocks(teacher.module)
        return cls(teacher, Backbone(teacher.module, rank))

    def student(self, weights: nn.Module | None) -> Swappable:
        adapter = self.backbone.adapter()
        if weights is not None:
            adapter.load_state_dict(weights.state_dict())
        return self.teacher.with_module(adapter.train(), guided=False)

    def another(self) -> Swappable:
        return self.student(None)

    def plain(self, weights: nn.Module) -> nn.Module:
        if not isinstance(weights, Adapter):
            raise TypeError(f"An adapter is expected, not {type(weights).__name__}.")
        return merged(weights)


def merged(adapter: Adapter) -> nn.Module:
    """A copy of the backbone with the adapter's part added to its weights: a plain module of its class."""
    backbone = adapter.backbone
    with backbone.plain() as original:
        module = copy.deepcopy(original)
    with torch.no_grad():
        for path in backbone.linears:
            key, linear = _key(path), module.get_submodule(path)
            linear.weight += adapter.scale * (adapter.up[key] @ adapter.down[key]).to(linear.weight.dtype)
    return module


def peft_state(adapter: Adapter, component: str = "transformer") -> dict[str, Tensor]:
    """The adapter in the names that `pipe.load_lora_weights` reads, with its scale folded into B (alpha = rank)."""
    state = {}
    for path in adapter.backbone.linears:
        key = _key(path)
        state[f"{component}.{path}.lora_A.weight"] = adapter.down[key].detach().contiguous()
        state[f"{component}.{path}.lora_B.weight"] = (adapter.scale * adapter.up[key].detach()).contiguous()
    return state


def _linears(module: nn.Module, targets: Sequence[str] | None) -> dict[str, nn.Linear]:
    if targets is None:
        found = {
            path: part
            for path, part in module.named_modules()
            if isinstance(part, nn.Linear) and any(step.isdigit() for step in path.split("."))
        }
        if not found:
            raise InputError(
                f"LoRA found no linear layers in repeated blocks of {type(module).__name__}: name targets."
            )
        return found
    known = dict(module.named_modules())
    for path in targets:
        if not isinstance(known.get(path), nn.Linear):
            raise InputError(bad_value("targets", "a LoRA adapter", f"linear layers of {type(module).__name__}", path))
    return {path: known[path] for path in targets}


def _key(path: str) -> str:
    """Names of parameters hold no dots."""
    return path.replace(".", "/")
