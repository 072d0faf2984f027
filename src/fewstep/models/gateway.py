"""Where a model's attention asks what to do: a gateway for each attention module, in the place of diffusers' dispatch.

Each call goes to the `Pass` that the owner is doing now. For torch.compile a gateway is one opaque operation, so that a
graph holds nothing of what is decided in it, and has no break there.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from fewstep.models.dispatch import Attention, attention_of, plain_attention

Slot = tuple[str, int]  # an attention module's path, and which of its calls in one forward


@dataclass(frozen=True)
class Run:
    """A module's own attention, with what it is told besides: (query, key, value, mask) -> one like `query`."""

    attention: Attention
    options: dict[str, Any]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return self.attention(query, key, value, attn_mask=mask, **self.options)


class Pass(Protocol):
    """What attention does in one call of the denoiser."""

    def slot(self, path: str) -> Slot:
        """The name of the next call of the attention at `path`."""

    def attend(self, slot: Slot, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, run: Run) -> Tensor:
        """(batch, tokens, heads, features), three times -> one, with as many tokens as `query`."""


class Owner(Protocol):
    """What a gateway belongs to."""

    @property
    def doing(self) -> Pass | None:
        """None: attention as it was."""


class Gateway:
    """What one attention module calls in the place of its own attention, with the same arguments."""

    def __init__(self, owner: Owner, path: str, module: nn.Module) -> None:
        attention = attention_of(module)
        assert attention is not None
        self._owner, self._path, self._module, self._attention = owner, path, module, attention
        # A tensor, which is an input of a compiled graph; a number would make a graph for each gateway.
        self.number = torch.tensor(next(_numbers))
        GATEWAYS[int(self.number)] = self

    def __deepcopy__(self, memo: dict[int, Any]) -> Gateway:
        return self

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        **others: Any,
    ) -> Tensor:
        # The backend is read when the operation runs; what it is told besides can't go into that, and breaks the graph.
        # In training it is not opaque, and has a gradient.
        opaque = torch.compiler.is_compiling() and not torch.is_grad_enabled()
        if opaque and not others.get("attention_kwargs"):
            numbers = (dropout_p, is_causal, scale, enable_gqa)
            answer: Tensor = attend(query, key, value, attn_mask, *numbers, self.number)
            return answer
        numbered = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        return self.attend(query, key, value, attn_mask, {**numbered, **others})

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor:
        run, now = Run(self._attention, options), self._owner.doing
        if now is None:
            return run(query, key, value, mask)
        return now.attend(now.slot(self._path), query, key, value, mask, run)

    def others(self) -> dict[str, Any]:
        """What its processor tells the dispatch besides."""
        if self._attention is plain_attention:
            return {}
        return {"backend": getattr(self._module.processor, "_attention_backend", None)}


_numbers = count()
GATEWAYS: WeakValueDictionary[int, Gateway] = WeakValueDictionary()


@torch.library.custom_op("fewstep::attend", mutates_args=())
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    gateway: Tensor,
) -> Tensor:
    """A gateway's attention as one operation."""
    gate = GATEWAYS[int(gateway)]
    options = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    return gate.attend(query, key, value, mask, {**options, **gate.others()}).contiguous()


@attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))
