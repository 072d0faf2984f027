"""Two processes of one thread against one process of one thread, and against one process of two threads.

    python benchmarks/parallel.py [--rounds 3] [--calls 3] [--frames 5] [--size 256] [--blocks 4] [--steps 20]

The model is of Wan's architecture with random weights, at a size where arithmetic dominates; a call is of `--steps`
steps with guidance, to latents. The first of them is made by both processes of "guidance 2", whose speed-up can so be
2·steps / (steps + 1) at most. Each row is a process group of its own, and the rows take turns: so many rounds, in each
of which every row makes one call to warm up and then `--calls` timed ones. A speed-up is the median over the rounds of
the median of its calls, beside that of one process of one thread. Writes out/benchmarks/parallel.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from rich.console import Console
from rich.table import Table

import fewstep
from fewstep.bench import results
from fewstep.machine import keep_freed_memory
from fewstep.techniques.parallel.processes import joined

TEXT = 64  # tokens
ROWS: dict[str, tuple[int, int, dict[str, int]]] = {  # processes, threads of each, layout
    "one process, one thread": (1, 1, {}),
    "one process, two threads": (1, 2, {}),
    "guidance 2": (2, 1, {"guidance": 2}),
    "ulysses 2": (2, 1, {"ulysses": 2}),
    "ring 2": (2, 1, {"ring": 2}),
}
BASE = next(iter(ROWS))


def pipeline(blocks: int) -> WanPipeline:
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=12, attention_head_dim=64, text_dim=256, freq_dim=256, ffn_dim=3072, num_layers=blocks
    )
    empty = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = WanPipeline(transformer=transformer.eval().requires_grad_(False), scheduler=scheduler, **empty)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def worker(options: argparse.Namespace) -> None:
    """The timed calls of one row, in each of its processes; the first prints them."""
    _, threads, layout = ROWS[options.worker]
    torch.set_num_threads(threads)
    keep_freed_memory()
    with joined() as (rank, _):
        pipe = pipeline(options.blocks)
        fast = fewstep.accelerate(pipe, [{"parallel": layout}] if layout else [])
        draw = torch.Generator().manual_seed(1)
        embeds = [torch.randn(1, TEXT, 256, generator=draw) for _ in range(2)]
        call: dict[str, Any] = {
            "height": options.size,
            "width": options.size,
            "num_frames": options.frames,
            "num_inference_steps": options.steps,
            "guidance_scale": 4.0,
            "prompt_embeds": embeds[0],
            "negative_prompt_embeds": embeds[1],
            "output_type": "latent",
        }
        seconds = []
        for _ in range(1 + options.calls):
            start = time.perf_counter()
            fast(**call, generator=torch.Generator().manual_seed(0))
            seconds.append(time.perf_counter() - start)
        if rank == 0:
            facts = {one.name: one.facts for one in fast.engaged}
            print(json.dumps({"seconds": seconds[1:], "facts": facts}))


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    processes = ROWS[name][0]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    own = [f"--{key}={getattr(options, key)}" for key in ("calls", "frames", "size", "blocks", "steps")]
    command = [sys.executable, *(launcher if processes > 1 else []), __file__, f"--worker={name}", *own]
    environment = {**os.environ, "OMP_NUM_THREADS": str(ROWS[name][1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=results.FOLDER)
    parser.add_argument("--worker", choices=list(ROWS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    rounds = [{name: measured(name, options) for name in ROWS} for _ in range(options.rounds)]
    tokens = ((options.frames - 1) // 4 + 1) * (options.size // 16) ** 2
    rows = []
    for name, (processes, threads, _) in ROWS.items():
        medians = [statistics.median(one[name]["seconds"]) for one in rounds]
        bases = [statistics.median(one[BASE]["seconds"]) for one in rounds]
        ratios = [base / own for base, own in zip(bases, medians, strict=True)]
        rows.append(
            {
                "row": name,
                "processes": processes,
                "threads": threads,
                "seconds": round(statistics.median(medians), 3),
                "speedup": round(statistics.median(ratios), 3),
                "speedup_range": [round(min(ratios), 3), round(max(ratios), 3)],
                "tokens": tokens,
                "steps": options.steps,
                "facts": rounds[-1][name]["facts"],
            }
        )
    table = Table(title=f"{options.steps} steps with guidance, {tokens} tokens, {options.blocks} blocks of width 768")
    for column in ("row", "seconds a call", "speed-up"):
        table.add_column(column, justify="left" if column == "row" else "right")
    for row in rows:
        low, high = row["speedup_range"]
        table.add_row(row["row"], f"{row['seconds']:.2f}", f"{row['speedup']:.2f} ({low:.2f} to {high:.2f})")
    Console().print(table)
    print(f"Wrote {results.save('parallel', rows, options.out)}")


if __name__ == "__main__":
    main()
