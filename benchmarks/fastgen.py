"""Few-step students by fewstep and by NVIDIA FastGen itself, from one teacher, on points with an exact distance.

    git clone https://github.com/NVlabs/FastGen
    python -m pip install attrs boto3 einops ftfy imageio loguru omegaconf webdataset
    python benchmarks/fastgen.py --fastgen FastGen [--seeds 3] [--iterations 2000] [--steps 1 2] [--methods dmd2]

Three methods: consistency distillation with ECT's schedule, MeanFlow, and DMD2 without a discriminator. The teacher is
a small network fitted to eight Gaussians on a circle, a flow. Both start from its weights and get the same batches,
AdamW, rate (which rises and falls alike), average of the weights, and numbers of updates; all else is each one's own
default, see `recipe`. FastGen runs by its own models, optimizers, callbacks and `Trainer.train_step`, on the CPU; of
it only what logs to wandb and its lists of large networks and data sets are left out. Trainings are timed in turns, in
one process with one thread. What can't be run says why in its row.

Students are drawn by their own samplers from the same noise, with as many calls. Writes out/benchmarks/fastgen.json.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

import fewstep
from fewstep.bench import results
from fewstep.diffusion.samplers import SAMPLERS, euler, flow_times, renoise
from fewstep.distill.catalog import CATALOG
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.data.seeds import derive, generator
from fewstep.distill.engine.loop import train
from fewstep.distill.engine.roles import Network, student_of
from fewstep.distill.engine.settings import Settings
from fewstep.distill.makers import Given
from fewstep.distill.methods.backward import Stepping
from fewstep.distill.methods.finetune import Finetune
from fewstep.distill.mixtures import MLP, MixtureTask, ring
from fewstep.distill.two_times import TwoTimes, along
from fewstep.errors import InputError

Row = dict[str, Any]
Draw = Callable[[Tensor, int], Tensor]  # (noise, steps) -> points

OURS, THEIRS = "fewstep", "FastGen"
NEEDS = "attrs boto3 einops ftfy imageio loguru omegaconf webdataset"
TASK = MixtureTask(ring(8), labelled=False)
POINTS = 4000  # samples that a distance is taken of
POOL = 10_000  # the teacher's samples, which students are trained on
BATCH, RATE, WARMUP, EMA = 256, 1e-3, 50, 0.99
END = 0.999  # the noisiest time of FastGen's flows
CRITIC_STEPS = 4  # FastGen updates the student in every fifth iteration, and the critic in the others
SPREAD = math.log(1.42 / 0.5)  # FastGen's noise levels are for pictures, whose deviation is 0.5; these points' is 1.42


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fastgen", type=Path, required=True, help="the folder of a checkout of FastGen")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=2000, help="updates of a student")
    parser.add_argument("--teacher-iterations", type=int, default=4000)
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2], help="of the students")
    parser.add_argument("--methods", nargs="+", default=list(PLANS), choices=list(PLANS), metavar="METHOD")
    options = parser.parse_args()
    torch.set_num_threads(1)
    library = loaded(options.fastgen)
    rows = list(compared(options, library))
    show(rows)
    print(results.save("fastgen", rows))


def compared(options: argparse.Namespace, library: Library) -> Iterator[Row]:
    teacher = fitted(options.teacher_iterations)
    for steps in (50, *options.steps):
        for seed in range(options.seeds):
            points = SAMPLERS["euler"](teacher, TASK.noise(POINTS, seed=1000 + seed), flow_times(steps))
            yield {"method": "teacher", "by": "euler", "steps": steps, "seed": seed, "distance": TASK.distance(points)}
    pool = euler(teacher, TASK.noise(POOL, seed=1), flow_times(50))
    for method in options.methods:
        plan = PLANS[method]
        for trained in [(steps,) for steps in options.steps] if plan.for_steps else [tuple(options.steps)]:
            yield from in_turn(plan, teacher, pool, trained, options, library)


def in_turn(
    plan: Plan, teacher: Network, pool: Tensor, steps: Sequence[int], options: argparse.Namespace, library: Library
) -> Iterator[Row]:
    """Rows of one training by each, seed after seed; they are sampled with each number of `steps`."""
    sides: dict[str, Callable[[Work], Done]] = {OURS: ours, THEIRS: lambda work: theirs(work, library)}
    calls: dict[str, float | str] = {}
    for seed in range(options.seeds):
        noise = TASK.noise(POINTS, seed=1000 + seed)
        for by, side in sides.items():
            work = Work(plan, teacher, pool, max(steps), options.iterations, seed)
            try:
                if by not in calls:
                    calls[by] = counted(side, work)
                done = side(work)
            except Exception as error:  # what FastGen can't do is a row of the table
                if by == OURS:
                    raise
                why = f"{type(error).__name__}: {error}".splitlines()[0]
                yield from ({"method": plan.method, "by": by, "steps": n, "seed": seed, "error": why} for n in steps)
                continue
            same = {"method": plan.method, "by": by, "seed": seed, "iterations": options.iterations}
            speed = {"seconds_per_step": done.seconds, "calls_per_step": calls[by]}
            for n in steps:
                torch.manual_seed(derive("drawn", seed))
                yield {**same, "steps": n, "distance": TASK.distance(done.draw(noise, n)), **speed}


@torch.no_grad()
def distance_of(teacher: Network, noise: Tensor, steps: int) -> float:
    return TASK.distance(euler(teacher, noise, flow_times(steps)))


# What both do.


@dataclass(frozen=True)
class Plan:
    """A method in both.

    Attributes:
        config: the module with FastGen's configuration of it.
        model: the name of FastGen's class.
        recipe: what is set in that configuration.
        sampler: of the student.
        for_steps: it is trained anew for each number of steps.
        options: of fewstep's method.
        parts: iterations of FastGen that make one update of the student.
    """

    method: str
    config: str
    model: str
    recipe: Callable[[Any], None]
    sampler: Stepping
    for_steps: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    parts: int = 1

    @property
    def betas(self) -> tuple[float, float]:
        return CATALOG[self.method].betas


@dataclass(frozen=True, eq=False)
class Work:
    """A student to train, by either."""

    plan: Plan
    teacher: Network
    pool: Tensor
    steps: int
    iterations: int
    seed: int

    def batch(self, number: int) -> Tensor:
        """x0 of shape (BATCH, 2), the same for both."""
        return self.pool[torch.randint(len(self.pool), (BATCH,), generator=generator("batch", self.seed, number))]

    def start(self) -> nn.Module:
        """The student before its training: the teacher's weights, with a second time where the method has one."""
        if not CATALOG[self.plan.method].two_times:
            return copy.deepcopy(self.teacher.module)
        with torch.random.fork_rng():
            torch.manual_seed(derive("second time", self.seed))
            return TwoTimes(self.teacher.module)


@dataclass(frozen=True)
class Done:
    """A trained student: how it is sampled, and the seconds of one of its updates."""

    draw: Draw
    seconds: float


def fitted(iterations: int) -> Network:
    """A network trained on exact samples of the mixture: the teacher."""
    student = TASK.student(width=128)
    settings = Settings(iterations, rate=3e-3, ema=EMA, save_every=10**9)
    pool = TASK.samples(20_000)[0]

    def batch(number: int) -> PathBatch:
        return as_paths(pool[torch.randint(len(pool), (BATCH,), generator=generator("teacher", number))])

    with tempfile.TemporaryDirectory() as folder:
        averages = train(Finetune(student), batch, folder, settings, title="teacher").averages
    return student.with_module(averages["student"].eval().requires_grad_(False))


def as_paths(x0: Tensor) -> PathBatch:
    """Samples as paths of their end alone."""
    return PathBatch(x0[:, None], (0.0,), None)


def counted(side: Callable[[Work], Done], work: Work) -> float:
    """Calls of a network in an update of the student, its critic's updates before it included; a derivative is one."""
    total, some = 0, 20

    def count(module: nn.Module, inputs: Any) -> None:
        nonlocal total
        total += isinstance(module, MLP)

    handle = register_module_forward_pre_hook(count)
    try:
        side(Work(work.plan, work.teacher, work.pool, work.steps, some, work.seed))
    finally:
        handle.remove()
    return total / some


def pace(ends: Sequence[float], parts: int = 1) -> float:
    """Seconds of an update, from when each of its parts was done; the first is a warm-up."""
    return parts * (ends[-1] - ends[0]) / (len(ends) - 1)


# fewstep.


def ours(work: Work) -> Done:
    plan, card = work.plan, CATALOG[work.plan.method]
    student = work.teacher.with_module(work.start().requires_grad_(True).train())
    times, finer = (tuple(flow_times(n)) for n in (work.steps, 2 * work.steps))
    example = as_paths(work.batch(0)[:4])
    given = Given(work.teacher, student, lambda: student_of(work.teacher), times, finer, plan.sampler, example)
    settings = Settings(
        work.iterations, rate=RATE, warmup=WARMUP, betas=plan.betas, ema=EMA, save_every=10**9, seed=work.seed
    )
    ends: list[float] = []

    def watch(step: int, averages: Mapping[str, nn.Module]) -> None:
        ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        distiller = card.make(given, **plan.options)
        done = train(distiller, lambda n: as_paths(work.batch(n)), folder, settings, watch=watch, show=False)
    trained = student.with_module(done.averages["student"].eval())

    @torch.no_grad()
    def draw(noise: Tensor, steps: int) -> Tensor:
        path = flow_times(steps)
        if plan.sampler == "renoise":
            return renoise(trained, noise, path, generator=generator("drawn", work.seed))
        return euler(along(trained, path) if card.two_times else trained, noise, path)

    return Done(draw, pace(ends))


# FastGen.


@dataclass(frozen=True)
class Library:
    """FastGen, as far as it is used here."""

    methods: Any
    network: Any
    trainer: Any
    callbacks: Any
    lazy: Any

    def config(self, plan: Plan) -> Any:
        with without_catalogs():
            return importlib.import_module(plan.config).create_config()


def loaded(place: Path) -> Library:
    """FastGen from the folder of its checkout.

    Raises:
        InputError: it is not there, or a package that it needs is missing.
    """
    if not (place / "fastgen" / "methods").is_dir():
        raise InputError(f"There is no FastGen in {place}: give the folder of a checkout of github.com/NVlabs/FastGen.")
    sys.path.insert(0, str(place.resolve()))
    sys.modules.pop("fastgen", None)  # this file, where it was imported
    try:
        methods = importlib.import_module("fastgen.methods")
        importlib.import_module("fastgen.utils.logging_utils").set_log_level("ERROR")
        with without_catalogs():
            network = importlib.import_module("fastgen.networks.network").FastGenNetwork
            trainer = importlib.import_module("fastgen.trainer").Trainer
            callbacks = importlib.import_module("fastgen.callbacks.ema").EMACallback
            lazy = importlib.import_module("fastgen.utils").LazyCall
            for plan in PLANS.values():
                importlib.import_module(plan.config)
    except ImportError as error:
        raise InputError(f"FastGen can't be imported ({error}). It needs: python -m pip install {NEEDS}.") from error
    return Library(methods, network, trainer, callbacks, lazy)


@contextmanager
def without_catalogs() -> Iterator[None]:
    """FastGen's configurations, without wandb and without its lists of networks and data sets, which need far more."""
    empty = importlib.import_module("omegaconf").DictConfig
    stand_ins: dict[str, dict[str, Any]] = {
        "wandb": {"run": None},
        "fastgen.callbacks.wandb": {"WandbCallback": object},
        "fastgen.configs.net": {"EDM_CIFAR10_Config": empty({}), "CKPT_ROOT_DIR": ""},
        "fastgen.configs.data": {"CIFAR10_Loader_Config": empty({})},
    }
    before = {name: sys.modules.get(name) for name in stand_ins}
    for name, values in stand_ins.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(values)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def theirs(work: Work, library: Library) -> Done:
    plan, config = work.plan, library.config(work.plan)
    made, model_config = network_class(library.network), config.model
    model_config.net = library.lazy(made)(module=work.start())
    learning = copy.deepcopy(work.teacher.module).requires_grad_(True)  # FastGen freezes it, but not the critic's copy
    model_config.teacher = library.lazy(made)(module=learning)
    model_config.input_shape, model_config.device = [2], "cpu"
    model_config.student_sample_steps = work.steps
    model_config.student_sample_type = "sde" if plan.sampler == "renoise" else "ode"
    model_config.sample_t_cfg.t_list = end_times(work.steps)
    model_config.use_ema = True
    plan.recipe(model_config)
    train_alike(model_config, plan, work.iterations)
    config.trainer.callbacks = callbacks(config, work, library)
    config.trainer.seed, config.trainer.logging_iter = work.seed, 10**9
    config.dataloader_train.batch_size = BATCH
    if "kimg_per_stage" in config.trainer.callbacks.get("ct_schedule", {}):
        config.trainer.callbacks.ct_schedule.kimg_per_stage = (
            BATCH * work.iterations / 8 / 1000
        )  # FastGen's eight stages

    with torch.random.fork_rng():
        trainer = library.trainer(config)
        model = getattr(library.methods, plan.model)(model_config)
        ends = trained_by(trainer, model, work)

    def draw(noise: Tensor, steps: int) -> Tensor:
        kind, path = model_config.student_sample_type, end_times(steps)
        points: Tensor = model.generator_fn(
            model.net_inference, noise, steps, path, condition=None, student_sample_type=kind
        )
        return points.clone()

    return Done(draw, pace(ends, plan.parts))


def trained_by(trainer: Any, model: Any, work: Work) -> list[float]:
    """Train as FastGen's trainer does, less its checkpoints; returns when each iteration was done."""
    on, ends = trainer.callbacks, []
    on.on_model_init_start(model)
    model.on_train_begin()
    on.on_model_init_end(model)
    model.init_optimizers()
    on.on_train_begin(model, iteration=0)
    for iteration in range(1, work.plan.parts * work.iterations + 1):
        on.on_training_step_begin(model, iteration=iteration)
        x0 = work.batch((iteration - 1) // work.plan.parts)
        data = {"real": x0, "condition": None, "neg_condition": None}
        losses, outputs = trainer.train_step(model, model, data, iteration, 0)
        on.on_training_step_end(
            model=model, data_batch=data, output_batch=outputs, loss_dict=losses, iteration=iteration
        )
        ends.append(time.perf_counter())
    return ends


def network_class(base: Any) -> Any:
    """A network of FastGen's over a module called as `module(x_t, t, cond)`, of one time or of two."""

    class Points(base):  # type: ignore[misc]
        def __init__(self, module: nn.Module) -> None:
            super().__init__(net_pred_type="flow", schedule_type="rf")
            self.module = copy.deepcopy(module)

        def forward(
            self,
            x_t: Tensor,
            t: Tensor,
            condition: Any = None,
            r: Tensor | None = None,
            fwd_pred_type: str | None = None,
            **unused: Any,
        ) -> Any:
            if isinstance(self.module, TwoTimes) and r is not None:
                with self.module.over(t - r):
                    v = self.module(x_t, t.to(x_t.dtype), condition)
            else:
                v = self.module(x_t, t.to(x_t.dtype), condition)
            wanted = fwd_pred_type or self.net_pred_type
            return self.noise_scheduler.convert_model_output(
                x_t, v, t, src_pred_type=self.net_pred_type, target_pred_type=wanted
            )

    return Points


def end_times(steps: int) -> list[float]:
    """The times of a student, which FastGen's flows must have below 1."""
    return [min(t, END) for t in flow_times(steps)]


def train_alike(config: Any, plan: Plan, iterations: int) -> None:
    """The optimizers and rates of fewstep's loop, in FastGen's configuration."""
    names = {"net": 1, "fake_score": plan.parts - 1} if plan.parts > 1 else {"net": 1}
    for name, updates in names.items():
        optimizer, rates = getattr(config, f"{name}_optimizer"), getattr(config, f"{name}_scheduler")
        optimizer.optim_type, optimizer.lr, optimizer.betas, optimizer.weight_decay = "adamw", RATE, plan.betas, 0.0
        rates.warm_up_steps, rates.cycle_lengths = [WARMUP * updates], [iterations * updates]
        rates.f_start, rates.f_max, rates.f_min = [1 / (WARMUP + 1)], [1.0], [0.0]


def callbacks(config: Any, work: Work, library: Library) -> Any:
    """Those of FastGen that change the training, with fewstep's decay of the average."""
    kept = {
        name: config.trainer.callbacks[name]
        for name in ("ct_schedule", "grad_clip")
        if name in config.trainer.callbacks
    }
    decay = EMA ** (1 / work.plan.parts)  # FastGen averages in the critic's iterations too
    average = library.lazy(library.callbacks)(type="constant", beta=decay, ema_name="ema")
    return type(config.trainer.callbacks)({**kept, "ema": average}, flags={"allow_objects": True})


# What FastGen is told beside that. The rest are its own defaults; its levels are moved to the spread of these points.


def consistency_recipe(config: Any) -> None:
    """Its times are drawn for EDM's noise levels: those of a flow are their logits."""
    config.loss_config.use_cd = True
    at = config.sample_t_cfg
    at.time_dist_type, at.min_t, at.max_t = "logitnormal", 0.001, END
    at.train_p_mean += SPREAD


def meanflow_recipe(config: Any) -> None:
    config.loss_config.use_cd = True
    config.sample_t_cfg.train_p_mean += SPREAD
    config.sample_r_cfg.train_p_mean += SPREAD
    config.net_scheduler.f_start = [1.0]


def dmd2_recipe(config: Any) -> None:
    """Without a discriminator, at the times that its flows of pictures have."""
    config.gan_loss_weight_gen = 0.0
    at = config.sample_t_cfg
    at.time_dist_type, at.min_t, at.max_t = "uniform", 0.001, END


PLANS = {
    plan.method: plan
    for plan in (
        Plan("consistency", "fastgen.configs.methods.config_cm", "CMModel", consistency_recipe, sampler="renoise"),
        Plan(
            "meanflow",
            "fastgen.configs.experiments.EDM.config_mf_cifar10",
            "MeanFlowModel",
            meanflow_recipe,
            sampler="euler",
        ),
        Plan(
            "dmd2",
            "fastgen.configs.methods.config_dmd2",
            "DMD2Model",
            dmd2_recipe,
            sampler="renoise",
            for_steps=True,
            options={"critic_steps": CRITIC_STEPS},
            parts=CRITIC_STEPS + 1,
        ),
    )
}


# The table.


def show(rows: Sequence[Row]) -> None:
    """A line for each method and number of steps; figures are means over seeds, with their range."""
    table = Table(
        "method", "steps", OURS, THEIRS, "ratio", f"{OURS} steps/s", f"{THEIRS} steps/s", "times as fast", "calls"
    )
    for method, steps in dict.fromkeys((row["method"], row["steps"]) for row in rows):
        same = [row for row in rows if (row["method"], row["steps"]) == (method, steps)]
        table.add_row(method, str(steps), *cells(same))
    Console().print(table)


def cells(rows: Sequence[Row]) -> list[str]:
    if rows[0]["method"] == "teacher":
        return [results.told([row["distance"] for row in rows])]
    mine, other = ([row for row in rows if row["by"] == by] for by in (OURS, THEIRS))
    distance, speed = (
        results.told([row["distance"] for row in mine]),
        results.told([1 / row["seconds_per_step"] for row in mine]),
    )
    if "error" in other[0]:
        return [distance, other[0]["error"], "", speed, "", "", f"{mine[0]['calls_per_step']:g}"]
    ratio = statistics.mean(row["distance"] for row in mine) / statistics.mean(row["distance"] for row in other)
    faster = [b["seconds_per_step"] / a["seconds_per_step"] for a, b in zip(mine, other, strict=True)]
    calls = " / ".join(f"{row['calls_per_step']:g}" for row in (mine[0], other[0]))
    found = results.told([row["distance"] for row in other])
    return [
        distance,
        found,
        f"{ratio:.2f}",
        speed,
        results.told([1 / row["seconds_per_step"] for row in other]),
        results.told(faster),
        calls,
    ]


if __name__ == "__main__":
    try:
        main()
    except fewstep.FewstepError as error:
        sys.exit(str(error))
