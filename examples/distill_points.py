"""A student of a network that is no pipeline: points on a ring, in one step, with the exact distance to the truth.

python examples/distill_points.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from fewstep.diffusion.samplers import euler, flow_times
from fewstep.distill.job import Job, Rung
from fewstep.distill.ladder import Domain, Ladder
from fewstep.distill.mixtures import MixtureTask, ring


def main(out: Path, iterations: int) -> None:
    truth = MixtureTask(ring(8))  # a label for each of eight Gaussians
    labels = torch.arange(4096) % 8

    # A teacher, which is any module called as module(x_t, t, cond): here one that learns the exact velocities.
    exact = Domain(truth.teacher, labels.tolist(), torch.tensor, shape=(2,), start=truth.student().module)
    lesson = Rung("finetune", iterations, batch=256, training={"rate": 3e-3, "ema": 0.99})
    module = Ladder(exact, Job((), out / "teacher", ladder=[lesson], check_every=0)).climb()
    teacher = truth.student().with_module(module)

    domain = Domain(teacher, labels.tolist(), torch.tensor, shape=(2,))
    rungs = [Rung("kd", iterations, batch=256, training={"rate": 3e-3, "ema": 0.99})]
    student = teacher.with_module(Ladder(domain, Job((), out / "student", steps=1, ladder=rungs)).climb())

    noise, asked = truth.noise(2000), truth.labels(2000)
    for name, network, steps in (("teacher", teacher, 50), ("teacher", teacher, 1), ("student", student, 1)):
        with torch.no_grad():
            points = euler(network, noise, flow_times(steps), asked)
        print(f"{name} in {steps} steps: distance {truth.distance(points, asked):.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/points"))
    parser.add_argument("--iterations", type=int, default=600)
    options = parser.parse_args()
    main(options.out, options.iterations)
