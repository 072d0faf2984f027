"""What `compile` writes anew for a CPU, on single blocks of real size with random weights: inductor's code with and
without, in turns.

    python benchmarks/rewrites.py [--blocks wan flux ltx] [--rounds 15]

Writes out/benchmarks/rewrites.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformerBlock
from diffusers.models.transformers.transformer_ltx import LTXVideoTransformerBlock
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx, nn

from fewstep.bench import results
from fewstep.bench.timing import interleaved, now, speedup
from fewstep.techniques.rewrites import quick_on_cpu

Block = tuple[nn.Module, dict[str, Any]]  # and what it is called with
DTYPE = torch.bfloat16


def wan() -> Block:
    """Wan 2.1 1.3B, 4096 tokens of video."""
    block = WanTransformerBlock(1536, 8960, 12, "rms_norm_across_heads", cross_attn_norm=True)
    cos, sin = (one[:, :, None] for one in angles(4096, 128))
    return block, {
        "hidden_states": torch.randn(1, 4096, 1536, dtype=DTYPE),
        "encoder_hidden_states": torch.randn(1, 512, 1536, dtype=DTYPE),
        "temb": torch.randn(1, 6, 1536),
        "rotary_emb": (cos, sin),
    }


def flux() -> Block:
    """Flux, a double block: 512×512 pixels, 256 tokens of text."""
    return FluxTransformerBlock(3072, 24, 128), {
        "hidden_states": torch.randn(1, 1024, 3072, dtype=DTYPE),
        "encoder_hidden_states": torch.randn(1, 256, 3072, dtype=DTYPE),
        "temb": torch.randn(1, 3072, dtype=DTYPE),
        "image_rotary_emb": tuple(one[0] for one in angles(1280, 128)),
    }


def ltx() -> Block:
    """LTX-Video 2B, 4096 tokens of video."""
    block = LTXVideoTransformerBlock(2048, 32, 64, 2048)
    return block, {
        "hidden_states": torch.randn(1, 4096, 2048, dtype=DTYPE),
        "encoder_hidden_states": torch.randn(1, 128, 2048, dtype=DTYPE),
        "temb": torch.randn(1, 1, 6 * 2048, dtype=DTYPE),
        "image_rotary_emb": angles(4096, 2048),
    }


BLOCKS: dict[str, Callable[[], Block]] = {"wan": wan, "flux": flux, "ltx": ltx}


def angles(tokens: int, features: int) -> tuple[Tensor, Tensor]:
    """cos and sin of any angles, each twice, (1, tokens, features)."""
    drawn = 6 * torch.rand(1, tokens, features // 2)
    return drawn.cos().repeat_interleave(2, -1), drawn.sin().repeat_interleave(2, -1)


@torch.no_grad()
def row(name: str, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    block, given = BLOCKS[name]()
    block.to(DTYPE).eval()
    written: list[int] = []

    def backend(graph: fx.GraphModule, inputs: list[Any]) -> Any:
        from torch._inductor.compile_fx import compile_fx

        written.append(quick_on_cpu(graph.graph))
        graph.recompile()
        return compile_fx(graph, inputs)

    def seconds(compiled: Callable[..., Any], _: int) -> float:
        start = now()
        compiled(**given)
        return now() - start

    compiled = {"plain": torch.compile(block), "anew": torch.compile(block, backend=backend)}
    subjects = {name: partial(seconds, one) for name, one in compiled.items()}
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for i, subject, took in interleaved(subjects, range(-2, rounds)):  # the first ones compile
        if i >= 0:
            found[subject].append(took)
    return {
        "block": name,
        "rewritten": max(written),
        "plain_ms": 1000 * statistics.median(found["plain"]),
        "anew_ms": 1000 * statistics.median(found["anew"]),
        "speedup": speedup(found["plain"], found["anew"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", nargs="+", default=list(BLOCKS), choices=list(BLOCKS))
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    rows = [row(name, options.rounds) for name in options.blocks]
    table = Table("block", "operations", "inductor", "written anew", "ratio")
    for one in rows:
        cells = [f"{one['plain_ms']:.0f} ms", f"{one['anew_ms']:.0f} ms", f"{one['speedup']:.2f}×"]
        table.add_row(one["block"], str(one["rewritten"]), *cells)
    Console().print(table)
    print(results.save("rewrites", rows))


if __name__ == "__main__":
    main()
