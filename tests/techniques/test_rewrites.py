"""The rewritten graph computes the same function, and only where that pays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers import transformer_helios, transformer_ltx, transformer_wan
from torch import Tensor, fx, nn
from torch.nn import functional

from fewstep.techniques.rewrites import quick_on_cpu


def captured(function: Any, *given: Any) -> fx.GraphModule:
    """The graph as torch.compile hands it to a backend."""
    graphs: list[fx.GraphModule] = []

    def keep(graph: fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compile(function, backend=keep, fullgraph=True)(*given)
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


ANGLES = torch.rand(1, 5, 1, 4) * 6
COS, SIN = (one.repeat_interleave(2, -1) for one in (ANGLES.cos(), ANGLES.sin()))
ROTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "flux": lambda x: apply_rotary_emb(x, (COS[0, :, 0], SIN[0, :, 0]), sequence_dim=1),
    "ltx": lambda x: transformer_ltx.apply_rotary_emb(
        x.flatten(2), (COS.repeat(1, 1, 1, 3)[:, :, 0], SIN.repeat(1, 1, 1, 3)[:, :, 0])
    ),
    "helios": lambda x: transformer_helios.apply_rotary_emb_transposed(x, torch.cat([COS, SIN], -1)[:, :, 0]),
    "wan": lambda x: WAN(x.flatten(2), rotary_emb=(COS, SIN)),
}
WAN = transformer_wan.WanAttention(24, heads=3, dim_head=8, processor=transformer_wan.WanAttnProcessor())


@pytest.mark.parametrize("name", ROTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_embeddings_are_to_the_bit_what_diffusers_models_compute(name: str, dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    WAN.to(dtype)
    seen: list[int] = []

    def backend(graph: fx.GraphModule, _: list[Tensor]) -> Any:
        seen.append(quick_on_cpu(graph.graph))
        graph.graph.lint()
        graph.recompile()
        return graph.forward

    with torch.no_grad():
        made = torch.compile(ROTATIONS[name], backend=backend, fullgraph=True)(x)
        torch.compiler.reset()
        assert torch.equal(made, ROTATIONS[name](x))
    assert seen == [2 if name == "wan" else 1]  # a query and a key


def other_way(x: Tensor) -> Tensor:
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([b, -a], dim=-1).flatten(-2)


def of_two_tensors(x: Tensor) -> Tensor:
    first, second = (x + 1).unflatten(-1, (-1, 2)).unbind(-1)[0], x.unflatten(-1, (-1, 2)).unbind(-1)[1]
    return torch.stack([-second, first], dim=-1).flatten(-2)


def kept_apart(x: Tensor) -> Tensor:
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-b, a], dim=-1).flatten(1)


def in_halves(angles: Callable[[Tensor], tuple[Any, Any, Any]]) -> Callable[[Tensor], Tensor]:
    """A rotation as Wan writes it, by cos and sin; the last stands for cos where b is multiplied by it."""

    def turned(x: Tensor) -> Tensor:
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin, last = angles(x)
        out = torch.empty_like(x)
        out[..., 0::2] = a * cos - b * sin
        out[..., 1::2] = a * sin + b * last
        return out

    return turned


def each_pair(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    cos, sin = x[..., :4].cos(), x[..., :4].sin()
    return cos, sin, cos


def one_angle(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    cos, sin = x[..., :1].cos(), x[..., :1].sin()
    return cos, sin, cos


def one_number(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    cos, sin = x.mean(), x.amax()
    return cos, sin, cos


def read_half_written(x: Tensor) -> Tensor:
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    out = torch.zeros_like(x)
    out = torch.empty_like(out)
    out[..., 0::2] = a * a - b * b
    half = out[..., 0::2] * 1
    out[..., 1::2] = a * b + b * a
    return out + half.repeat_interleave(2, -1)


def written_over(x: Tensor) -> Tensor:
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    out = torch.empty_like(x)
    out[..., 0::2] = a * 2 - b * 3
    out[..., 1::2] = a * 3 + b * 2
    out[..., 1::2] = b
    return out


ALIKE: dict[str, Callable[[Tensor], Tensor]] = {
    "the other way": other_way,
    "of two tensors": of_two_tensors,
    "kept apart": kept_apart,
    "by other numbers": in_halves(lambda x: (2, 3, 4)),
    "by numbers": in_halves(lambda x: (2, 3, 2)),
    "by one angle": in_halves(one_angle),
    "by a scalar": in_halves(one_number),
    "read when half is written": read_half_written,
    "written over": written_over,
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_only_looks_like_a_rotation_is_left_alone(name: str) -> None:
    x = torch.randn(2, 3, 8)
    count, y = rewritten(ALIKE[name], x)
    assert count == 0
    assert torch.equal(y, ALIKE[name](x))


def test_an_angle_for_each_pair_is_a_rotation() -> None:
    x = torch.randn(2, 3, 8)
    count, y = rewritten(in_halves(each_pair), x)
    assert count == 1
    assert torch.equal(y, in_halves(each_pair)(x))
