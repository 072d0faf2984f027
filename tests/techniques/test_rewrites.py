"""The rewritten graph computes the same function, and only where that pays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from fewstep.techniques.rewrites import quick_on_cpu


def captured(function: Any, x: Tensor) -> fx.GraphModule:
    """The graph as torch.compile hands it to a backend."""
    graphs: list[fx.GraphModule] = []

    def keep(graph: fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compile(function, backend=keep, fullgraph=True)(x)
    torch.compiler.reset()
    return graphs[0]


def rewritten(function: Any, x: Tensor) -> tuple[int, Tensor]:
    graph = captured(function, x)
    count = quick_on_cpu(graph.graph)
    graph.recompile()
    return count, graph(*[x] * sum(node.op == "placeholder" for node in graph.graph.nodes))[0]


@pytest.mark.parametrize("tanh_gelu", [nn.GELU(approximate="tanh"), lambda x: functional.gelu(x, approximate="tanh")])
def test_gelu_by_tanh_is_the_same_function_everywhere(tanh_gelu) -> None:
    x = torch.cat([torch.linspace(-30, 30, 20_001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, torch.inf])]).double()
    count, y = rewritten(tanh_gelu, x)
    assert count == 1
    torch.testing.assert_close(y, functional.gelu(x, approximate="tanh"), rtol=1e-12, atol=1e-14)


def test_both_of_two_are_rewritten_and_what_is_around_them_stays() -> None:
    x = torch.randn(4, 8)
    weight = torch.randn(8, 8)

    def two(x: Tensor) -> Tensor:
        return functional.gelu(functional.gelu(x, approximate="tanh") @ weight, approximate="tanh") + 1

    graph = captured(two, x)
    assert quick_on_cpu(graph.graph) == 2
    graph.graph.lint()


def test_the_exact_gelu_is_left_alone() -> None:
    x = torch.randn(5)
    count, y = rewritten(nn.GELU(), x)
    assert count == 0
    assert torch.equal(y, functional.gelu(x))


def test_on_another_device_nothing_is_rewritten() -> None:
    x = torch.randn(5, device="meta")
    assert quick_on_cpu(captured(nn.GELU(approximate="tanh"), x).graph) == 0
