"""What the training loop costs: its steps against the same steps written out by hand, in turn.

    python benchmarks/step_time.py [--rounds 3] [--steps 12] [--batch 16]

The step is that of knowledge distillation on the zoo's transformer: forward, backward, clipping, AdamW, the average of
the weights. Checkpoints are not counted in either. Writes out/benchmarks/step_time.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import fewstep
from fewstep.bench import results
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Settings, train
from fewstep.distill.engine.roles import student_of
from fewstep.distill.methods.kd import KD
from fewstep.models.trace import TracedDenoiser
from fewstep.zoo.tasks import task

RATE, CLIP, EMA = 1e-4, 1.0, 0.999


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    pipe = fewstep.load("zoo:shapes")
    pipe.set_progress_bar_config(disable=True)
    prompts = [prompt for prompt, _ in task("shapes").prompts(options.batch, 0)]
    teacher = fewstep.trace(pipe, prompt=prompts[0])
    cond = teacher.condition(prompt=prompts, negative_prompt=[""] * len(prompts))
    states = torch.randn(options.batch, 2, *teacher.noise.shape[1:], generator=torch.Generator().manual_seed(0))
    batch = PathBatch(states, (1.0, 0.0), cond)

    rows, ratios = [], []
    for number in range(options.rounds):
        ours, bare = of_the_loop(teacher, batch, options.steps), by_hand(teacher, batch, options.steps)
        rows.append({"round": number, "loop_seconds": ours, "hand_seconds": bare, "ratio": ours / bare})
        ratios.append(ours / bare)
        print(f"round {number}: loop {ours:.3f} s a step, by hand {bare:.3f} s, {ours / bare:.3f} times as long")
    print(f"median {statistics.median(ratios):.3f}")
    print(results.save("step_time", rows))


def of_the_loop(teacher: TracedDenoiser, batch: PathBatch, steps: int) -> float:
    """The median seconds of a step, from one to the next."""
    ends: list[float] = []

    def watch(step: int, averages: Mapping[str, nn.Module]) -> None:
        ends.append(time.perf_counter())

    settings = Settings(steps, rate=RATE, warmup=0, decay=0.0, clip=CLIP, ema=EMA, save_every=10**9)
    with tempfile.TemporaryDirectory() as folder:
        train(KD(student_of(teacher)), lambda number: batch, folder, settings, watch=watch, show=False)
    return median_gap(ends)


def by_hand(teacher: TracedDenoiser, batch: PathBatch, steps: int) -> float:
    student = student_of(teacher)
    parameters: list[Tensor] = list(student.module.parameters())
    averages = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    x_t, x_s = batch.states[:, 0], batch.states[:, 1]
    ends: list[float] = []
    for _ in range(steps):
        prediction: Any = student(x_t, torch.ones(len(x_t), dtype=torch.float64), batch.cond)
        loss = (prediction - (x_t - x_s)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - EMA)
        loss.item()
        ends.append(time.perf_counter())
    return median_gap(ends)


def median_gap(ends: list[float]) -> float:
    return statistics.median(b - a for a, b in pairwise(ends[1:]))  # the first step is a warm-up


if __name__ == "__main__":
    main()
