"""Every method of distillation at 8, 4, 2 and 1 steps, with equal compute for each.

    python benchmarks/distill.py mixtures [--seeds 3] [--budget 6000] [--methods kd dmd2] [--steps 4 1]
    python benchmarks/distill.py shapes [--budget 3000] [--teacher zoo:shapes] [--earlier ROWS.json] …

`mixtures` distils a small network that was fitted to eight Gaussians on a circle; the distance to them is exact.
`shapes` distils the zoo's model, and its oracle judges. The budget counts forward passes for each sample (a method's
iterations are the budget over its cost); the teacher's paths are shared and not counted. Beside the students stands
the teacher with as many steps, by its best solver.

Writes out/benchmarks/distill-mixtures.json and .png, or distill-shapes.json and a picture for each number of steps. A
run that stops goes on where it was; rows of another run, and of another machine, are taken from its file (`--earlier`).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fewstep
from fewstep.bench import results, solvers
from fewstep.bench.training.read import read_run
from fewstep.diffusion.samplers import SAMPLERS, euler, flow_times, renoise
from fewstep.distill.catalog import CATALOG
from fewstep.distill.data.seeds import generator
from fewstep.distill.engine.roles import Network
from fewstep.distill.job import Job, Rung
from fewstep.distill.ladder import Domain, Ladder
from fewstep.distill.mixtures import MixtureTask, ring
from fewstep.distill.run import distill
from fewstep.distill.watching import grid
from fewstep.files import read_json, write_json
from fewstep.zoo.evaluate import evaluate, generate
from fewstep.zoo.tasks import task

Row = dict[str, Any]
POINTS = 4000  # samples that a distance is taken of
SHOWN = 1000
SIDE_BY_SIDE = 8  # pictures of each student
TEACHER = "teacher, best solver"
FEATURES = ("layers.0", "layers.1", "layers.2")  # of the small network, for discriminators


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain", choices=["mixtures", "shapes"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=6000, help="forward passes for each sample of a batch")
    parser.add_argument("--batch", type=int, help="samples of a step (256 points, 64 pictures)")
    parser.add_argument("--methods", nargs="+", default=list(CATALOG), choices=list(CATALOG), metavar="METHOD")
    parser.add_argument("--steps", nargs="+", type=int, default=[8, 4, 2, 1])
    parser.add_argument("--teacher", default="zoo:shapes")
    parser.add_argument("--earlier", type=Path, help="a file of rows of shapes that need not be measured again")
    options = parser.parse_args()
    name = f"distill-{options.domain}"
    place = results.FOLDER / name
    rows = list((mixtures if options.domain == "mixtures" else shapes)(options, place))
    show(rows)
    print(results.save(name, rows))


Fit = Callable[[str, int], dict[str, Any]]  # what a domain sets in the rung of a method of so many iterations


def rung(method: str, options: argparse.Namespace, fit: Fit) -> Rung:
    """As many iterations as the budget buys; a progressive ladder shares it among its stages."""
    iterations = max(1, options.budget // CATALOG[method].cost // (2 if method == "progressive" else 1))
    own = Rung(method, iterations, **fit(method, iterations))
    return replace(own, batch=options.batch or own.batch)


def ladder(method: str, options: argparse.Namespace, fit: Fit) -> list[Rung]:
    """The method; before a second stage the first, for half of the budget each."""
    stages = ["consistency", method] if method == "tcm" else [method]
    rungs = [rung(stage, options, fit) for stage in stages]
    return [replace(one, iterations=max(1, one.iterations // len(stages))) for one in rungs]


# Mixtures: points on a ring, with exact distances.


def mixtures(options: argparse.Namespace, place: Path) -> Iterator[Row]:
    exact = MixtureTask(ring(8), labelled=False)
    drawn: dict[str, Tensor] = {}
    for seed in range(options.seeds):
        teacher = fitted(exact, place / f"teacher-{seed}", seed)
        noise = exact.noise(POINTS, seed=1000 + seed)
        for steps in (50, *options.steps):
            yield best_solver(exact, teacher, noise, steps, seed)
        for method in options.methods:
            for steps in options.steps:
                run = place / f"{method}-{steps}-{seed}"
                student = learn(teacher, ladder(method, options, of_points), steps, seed, run)
                drawn[f"{method} {steps}"] = points = sample(student, noise, steps, seed)
                row = read_json(run / "trained.json")
                yield {"method": method, "steps": steps, "seed": seed, "distance": exact.distance(points), **row}
    picture(drawn, options.methods, options.steps, place.with_suffix(".png"))


def of_points(method: str, iterations: int) -> dict[str, Any]:
    known = {"features": FEATURES, "feature": FEATURES[-1]}
    options = {name: value for name, value in known.items() if name in CATALOG[method].choices}
    return {"batch": 256, "options": options, "training": {"rate": 1e-3, "rates": {}, "ema": 0.99}}


def fitted(exact: MixtureTask, place: Path, seed: int) -> Network:
    """A network trained on samples of the mixture: the teacher, so that critics have weights to start from."""
    untrained = exact.student(seed, width=128)
    domain = Domain(exact.teacher, [0] * 20_000, nothing, (2,), start=untrained.module)
    schooling = Rung("finetune", 4000, 256, training={"rate": 3e-3, "ema": 0.99})
    job = Job((), place, ladder=[schooling], teacher_steps=32, samples=20_000, check_every=0, seed=seed)
    return untrained.with_module(Ladder(domain, job).climb(show=False))


def learn(teacher: Network, rungs: Sequence[Rung], steps: int, seed: int, place: Path) -> Any:
    """The trained student as a denoiser that tells how it is sampled."""
    domain = Domain(teacher, [0] * 10_000, nothing, (2,))
    paths = shared(rungs, place.parent / f"paths-{seed}", kept_steps=8)
    job = Job((), place, steps=steps, ladder=rungs, **paths, seed=seed)
    start, climbing = time.perf_counter(), Ladder(domain, job)
    weights = climbing.plain(climbing.climb(show=False), steps)
    if not (place / "trained.json").exists():
        iterations = sum(one.iterations for one in job.rungs)
        write_json(place / "trained.json", {"iterations": iterations, "seconds": time.perf_counter() - start})
    return teacher.with_module(weights), job.stepping


def shared(rungs: Sequence[Rung], folder: Path, **how: Any) -> dict[str, Any]:
    """The teacher's paths that all methods share, for those that learn from any."""
    return {"paths": folder, **how} if any(rung.card.needs != "prompts" for rung in rungs) else {}


def nothing(prompts: Sequence[Any]) -> None:
    """Points are asked for by nothing."""


@torch.no_grad()
def sample(student: Any, noise: Tensor, steps: int, seed: int) -> Tensor:
    denoiser, stepping = student
    if stepping == "renoise":
        return renoise(denoiser, noise, flow_times(steps), generator=generator("benchmark", seed))
    return euler(denoiser, noise, flow_times(steps))


@torch.no_grad()
def best_solver(exact: MixtureTask, teacher: Network, noise: Tensor, steps: int, seed: int) -> Row:
    counts = {"euler": steps} | {name: count(steps) for name, count in solvers.STEPS.items()}
    found = {name: exact.distance(SAMPLERS[name](teacher, noise, flow_times(count))) for name, count in counts.items()}
    best = min(found, key=lambda name: found[name])
    return {"method": TEACHER, "steps": steps, "seed": seed, "distance": found[best], "solver": best}


def picture(drawn: dict[str, Tensor], methods: Sequence[str], steps: Sequence[int], path: Path) -> None:
    """A panel for each method and number of steps: the points of the last seed."""
    figure = Figure(figsize=(1.6 * len(steps), 1.6 * len(methods)), layout="constrained")
    panels = figure.subplots(len(methods), len(steps), squeeze=False)
    for row, method in zip(panels, methods, strict=True):
        for axes, count in zip(row, steps, strict=True):
            x, y = drawn[f"{method} {count}"][:SHOWN].T
            axes.scatter(x, y, s=1, color="#2a6f97")
            axes.set(xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[], aspect="equal")
            axes.set_title(f"{method}, {count}", fontsize=7)
    figure.savefig(path, dpi=110)


# Shapes: the zoo's model, judged by its oracle.


def shapes(options: argparse.Namespace, place: Path) -> Iterator[Row]:
    asked, budget = task("shapes"), options.budget
    teacher = fewstep.load(options.teacher)
    known = Known.of(options.earlier)
    whole = {"method": "teacher", "steps": 50, "seed": 0}
    yield known.row(place / "teacher-50.json", whole, partial(judged, teacher, asked, 50))
    for steps in options.steps:
        few = {"method": TEACHER, "steps": steps, "seed": 0}
        yield known.row(place / f"teacher-{steps}.json", few, partial(best_solved, options.teacher, asked, steps))
    for method in options.methods:
        for steps in options.steps:
            for seed in range(options.seeds):
                about = {"method": method, "steps": steps, "seed": seed, "budget": budget}
                run, rungs = run_of(place, about), ladder(method, options, of_pictures)
                yield known.row(run / "row.json", about, partial(taught, teacher, asked, rungs, steps, seed, run))
    for steps in options.steps:
        abouts = [{"method": method, "steps": steps, "seed": 0, "budget": budget} for method in options.methods]
        students = {about["method"]: run_of(place, about) / "student" for about in abouts}
        here = {method: folder for method, folder in students.items() if folder.exists()}
        if missing := students.keys() - here.keys():
            print(f"Not drawn in {steps} steps, since another run has the students: {', '.join(sorted(missing))}.")
        if here:
            show_students(teacher, here, steps, place)


def of_pictures(method: str, iterations: int) -> dict[str, Any]:
    warmup = {"warmup": min(50, iterations // 10)}
    if CATALOG[method].jvp:  # a derivative is neither compiled nor to be had in bfloat16
        return {"batch": 64, "training": warmup}
    return {"batch": 64, "training": warmup | {"precision": "bf16", "compile": True}}


def run_of(place: Path, about: Row) -> Path:
    return place / "{method}-{steps}-{seed}-{budget}".format_map(about)


@dataclass(frozen=True)
class Known:
    """Rows that another run measured, by what they are about."""

    rows: list[Row]

    @classmethod
    def of(cls, path: Path | None) -> Known:
        return cls([] if path is None else read_json(path)["rows"])

    def row(self, path: Path, about: Row, make: Callable[[], Row]) -> Row:
        """A row that was measured before, by this run or another, or now."""
        if path.exists():
            found: Row = read_json(path)
            return found
        for row in self.rows:
            if about.items() <= row.items():
                return row
        row = {**about, **make()}
        write_json(path, row)
        return row


def taught(teacher: Any, asked: Any, rungs: list[Rung], steps: int, seed: int, run: Path) -> Row:
    prompts = [prompt for prompt, _ in asked.prompts(2000, seed)]
    paths = shared(rungs, run.parent / f"paths-{seed}", kept_steps=8, teacher_precision="bf16")
    job = Job(prompts, run, steps=steps, ladder=rungs, samples=2000, **paths, seed=seed, show_every=0)
    student = fewstep.load(distill(teacher, job))
    iterations = sum(one.iterations for one in job.rungs)
    seconds = sum(stage.seconds for stage in read_run(run).stages)
    return {**judged(student, asked, steps), "iterations": iterations, "seconds": seconds}


def best_solved(teacher: str, asked: Any, steps: int) -> Row:
    rows = []
    for solver in solvers.STEPS:
        pipe = fewstep.load(teacher)
        solvers.install(pipe, solver)
        rows.append({**judged(pipe, asked, solvers.STEPS[solver](steps)), "solver": solver})
    return min(rows, key=lambda row: row["frechet"])


def show_students(teacher: Any, students: Mapping[str, Path], steps: int, place: Path) -> None:
    """A column of pictures for the teacher and each student: the same prompts and the same noise."""
    prompts = [prompt for prompt, _ in task("shapes").prompts(SIDE_BY_SIDE, 1)]
    drawn = {"teacher, 50": generate(teacher, prompts, range(SIDE_BY_SIDE), show=False, num_inference_steps=50)}
    for method, folder in students.items():
        student = fewstep.load(folder)
        drawn[method] = generate(student, prompts, range(SIDE_BY_SIDE), show=False, num_inference_steps=steps)
    pictures = (255 * np.stack(list(drawn.values()), 1)).round().astype(np.uint8)
    title = f"Students of {steps} step{'s' * (steps > 1)}: the same prompts, the same noise"
    grid.save(replace(grid.grid_of(title, prompts, pictures), columns=tuple(drawn)), f"{place}-{steps}.png")


def judged(pipe: Any, asked: Any, steps: int) -> Row:
    quality = asdict(evaluate(pipe, asked, prompts=128, num_inference_steps=steps))
    return {name: quality[name] for name in ("prompt_accuracy", "one_object_accuracy", "frechet", "diversity")}


def show(rows: Sequence[Row]) -> None:
    """A line for each method and number of steps; figures are means over seeds, with their range."""
    measures = [name for name in ("distance", "prompt_accuracy", "frechet", "diversity", "seconds") if name in rows[-1]]
    table = Table("method", "steps", *measures)
    for method, steps in dict.fromkeys((row["method"], row["steps"]) for row in rows):
        same = [row for row in rows if (row["method"], row["steps"]) == (method, steps)]
        cells = [results.told([row[name] for row in same if name in row]) for name in measures]
        table.add_row(method, str(steps), *cells)
    Console().print(table)


if __name__ == "__main__":
    try:
        main()
    except fewstep.FewstepError as error:
        sys.exit(str(error))
