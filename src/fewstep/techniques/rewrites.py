"""Operations of a traced graph written anew before it is compiled: the same function, in what a CPU is quick at."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

GELU = (torch._C._nn.gelu, functional.gelu)
EVEN, ODD = (Ellipsis, slice(0, None, 2)), (Ellipsis, slice(1, None, 2))
Rewrite = Callable[[fx.Node], bool]


def quick_on_cpu(graph: fx.Graph) -> int:
    """Rewrite what compiled code for a CPU computes slowly; returns how many operations that were."""
    nodes = [node for node in graph.nodes if _on_cpu(node)]
    return sum(rewrite(node) for node in nodes for rewrite in REWRITES)


def tanh_gelu(node: fx.Node) -> bool:
    """GELU's tanh form is x/2 · (1 + tanh y) with y = √(2/π) (x + 0.044715 x³) (arXiv 1606.08415, section 2). The
    identity (1 + tanh y)/2 = sigmoid(2y) takes one exponential; the generated code for tanh took 7 of the 37 ms of a
    small Flux's call.
    """
    if node.target not in GELU or node.kwargs.get("approximate") != "tanh":
        return False
    add = _before(node)
    x = node.args[0]
    bent = add(torch.add, add(torch.mul, add(torch.mul, x, x), 0.044715), 1.0)
    y2 = add(torch.mul, add(torch.mul, x, bent), 2 * math.sqrt(2 / math.pi))
    return _replaced(node, add(torch.mul, x, add(torch.sigmoid, y2)))


def quarter_turn(node: fx.Node) -> bool:
    """Neighbouring features (a, b) to (−b, a), as Flux, LTX and others turn a query and a key by
    x · cos + turn(x) · sin (arXiv 2104.09864, equation 34).

    They pull the pairs apart and stack them again, of which code comes that computes number by number. Neighbours that
    change places, times −1 and 1 in turns, are read as vectors: 1.2 to 2.6 times as fast.
    """
    stack: Any = node.args[0] if node.target == "flatten" else None
    if not _is_call(stack, torch.stack):
        return False
    parts, dim = (*stack.args, stack.kwargs.get("dim", 0))[:2]
    if dim != -1 or len(parts) != 2 or not _is_call(parts[0], operator.neg):
        return False
    pairs = _halves(parts[1], 0)
    if pairs is None or _halves(parts[0].args[0], 1) is not pairs or not _flat(node, pairs):
        return False
    add = _before(node)
    return _replaced(node, add(torch.mul, _swapped(add, pairs), _signs(node, pairs, _value(pairs).dtype)))


def turn(node: fx.Node) -> bool:
    """Neighbouring features (a, b) to (a · cos − b · sin, a · sin + b · cos), as Wan and its kin write them into empty
    memory, every other one at a time: the same as above, 1.7 to 2.9 times as fast.
    """
    if node.target is not torch.empty_like or len(node.args) != 1:
        return False
    written: list[Any] = [user for user in node.users if user.target is operator.setitem and user.args[0] is node]
    if [one.args[1] for one in written] != [EVEN, ODD] or list(node.users)[:2] != written:
        return False
    even, odd = (one.args[2] for one in written)
    found = _turned(even, odd)
    if found is None or not _flat(node, found[0]):
        return False
    pairs, cos, sin = found
    add = _before(written[1])

    def twice(x: fx.Node) -> fx.Node:
        return add(torch.flatten, add(torch.stack, [x, x], -1), -2)

    whole = add(torch.flatten, pairs, -2)
    signed = add(torch.mul, twice(sin), _signs(written[1], pairs, _value(sin).dtype))
    made = add(torch.add, add(torch.mul, whole, twice(cos)), add(torch.mul, _swapped(add, pairs), signed))
    rounded = add(Tensor.to, made, _value(node).dtype)
    for one in written:
        one.graph.erase_node(one)
    return _replaced(node, rounded)


REWRITES: tuple[Rewrite, ...] = (tanh_gelu, quarter_turn, turn)

# ---------------------------------------------------------------------------------------------------------------------


def _value(node: fx.Node) -> Any:
    """What a node was when it was traced."""
    return node.meta.get("example_value")


def _on_cpu(node: fx.Node) -> bool:
    value = _value(node)
    return isinstance(value, Tensor) and value.device.type == "cpu"


def _is_call(node: Any, function: object) -> bool:
    return isinstance(node, fx.Node) and node.target is function


def _halves(node: Any, which: int) -> fx.Node | None:
    """The tensor of pairs, in its last dimension, of which a node is the first or the second of each."""
    if not _is_call(node, operator.getitem) or node.args[1] != which:
        return None
    unbound: Any = node.args[0]
    if unbound.target != "unbind" or unbound.args[1:] != (-1,):
        return None
    pairs: fx.Node = unbound.args[0]
    return pairs if _value(pairs).ndim > 1 and _value(pairs).shape[-1] == 2 else None


def _flat(node: fx.Node, pairs: fx.Node) -> bool:
    """Whether a node has all features of these pairs in its last dimension, as many at each run."""
    *outer, count, two = _value(pairs).shape
    return isinstance(count, int) and tuple(_value(node).shape) == (*outer, count * two)


def _turned(even: Any, odd: Any) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """Pairs, cos and sin, where even and odd are a · cos − b · sin and a · sin + b · cos."""
    if not _is_call(even, operator.sub) or not _is_call(odd, operator.add):
        return None
    products = [*even.args, *odd.args]
    if not all(_is_call(one, operator.mul) for one in products):
        return None
    (a, cos), (b, sin), (a2, sin2), (b2, cos2) = (one.args for one in products)
    pairs = _halves(a, 0)
    if pairs is None or not (pairs is _halves(b, 1) is _halves(b2, 1) and pairs is _halves(a2, 0)):
        return None
    each = _same(cos, cos2) and _same(sin, sin2) and all(_for_each(one, pairs) for one in (cos, sin))
    return (pairs, cos, sin) if each else None


def _for_each(angles: Any, pairs: fx.Node) -> bool:
    """Whether each pair has an angle of its own."""
    if not isinstance(angles, fx.Node) or not isinstance(value := _value(angles), Tensor):
        return False
    return bool(value.shape[-1:] == _value(pairs).shape[-2:-1])


def _same(one: Any, other: Any) -> bool:
    """One node, or the same part of one tensor."""
    parts = _is_call(one, operator.getitem) and _is_call(other, operator.getitem)
    return one is other or (parts and one.args == other.args)


def _before(node: fx.Node) -> Callable[..., fx.Node]:
    """Adds calls before a node."""

    def add(function: Callable[..., Any], *args: Any) -> fx.Node:
        with node.graph.inserting_before(node):
            return node.graph.call_function(function, args)

    return add


def _swapped(add: Callable[..., fx.Node], pairs: fx.Node) -> fx.Node:
    return add(torch.flatten, add(torch.flip, pairs, (-1,)), -2)


def _signs(node: fx.Node, pairs: fx.Node, dtype: torch.dtype) -> fx.Node:
    """−1 and 1 in turns, for each feature of the pairs: written out, since code reads a whole row as vectors."""
    row = [-1.0, 1.0] * _value(pairs).shape[-2]
    with node.graph.inserting_before(node):
        return node.graph.call_function(torch.tensor, (row,), {"dtype": dtype})


def _replaced(node: fx.Node, by: fx.Node) -> bool:
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)
    return True
