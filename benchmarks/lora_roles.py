"""DMD2 with three copies of a network against one backbone in three roles: the memory of all that training keeps.

    python benchmarks/lora_roles.py [--rank 32]

Counts weights, averages, gradients and optimizer states (AdamW's two) of teacher, student and critic, on networks of
the real sizes, without making them ("meta" tensors); activations are the same in both. Writes
out/benchmarks/lora_roles.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, WanTransformer3DModel
from torch import nn

from fewstep.bench import results
from fewstep.distill.engine.lora import Backbone

GIB = 2**30
WAN_14B = {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
WAN_1B = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
NETWORKS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "Wan 1.3B": (WanTransformer3DModel, WAN_1B),
    "SD3 2B": (SD3Transformer2DModel, {"num_layers": 24, "num_attention_heads": 24, "sample_size": 128}),
    "Flux 12B": (FluxTransformer2DModel, {"guidance_embeds": True}),
    "Wan 14B": (WanTransformer3DModel, WAN_14B),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=32)
    options = parser.parse_args()
    rows = [compared(name, kind, config, options.rank) for name, (kind, config) in NETWORKS.items()]
    for row in rows:
        print(
            f"{row['network']:10} {row['billions']:5.2f}B  copies {row['copies_gib']:7.1f} GiB  "
            f"adapters of rank {options.rank} {row['adapters_gib']:6.1f} GiB  ({row['part']:.0%})"
        )
    print(results.save("lora_roles", rows))


def compared(name: str, kind: type[nn.Module], config: dict[str, Any], rank: int) -> dict[str, Any]:
    """Teachers and backbones are kept in bfloat16, what is trained in float32."""
    with torch.device("meta"):
        network = kind(**config)
        adapter = Backbone(network, rank).adapter()
    weights = count(network.parameters())
    trained = 4 * (1 + 1 + 1 + 2)  # bytes of a weight, its average, its gradient and two optimizer states
    copies = 2 * weights + 2 * trained * weights
    adapters = 2 * weights + 2 * trained * count(adapter.parameters())
    sizes = {"copies_gib": copies / GIB, "adapters_gib": adapters / GIB, "part": adapters / copies}
    return {"network": name, "billions": weights / 1e9, "rank": rank, **sizes}


def count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


if __name__ == "__main__":
    main()
