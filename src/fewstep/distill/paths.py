"""Running the teacher: from prompts and seeded noise to stored paths. Resumable shard by shard.

Every sample's noise is drawn from its own number: paths do not depend on the batch, the shard or where a run stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from fewstep.diffusion.samplers import sampler
from fewstep.diffusion.schedule import Denoiser, Schedule, Time
from fewstep.distill import conditions
from fewstep.distill.data import CONDITION, INDEX, STATES, Index, PathSet, Shard, checksum
from fewstep.distill.precision import Precision, autocast, check_precision, compiled, uncompiled
from fewstep.distill.progress import bar, patience
from fewstep.distill.roles import Swappable, device_of, fingerprint
from fewstep.distill.seeds import generator
from fewstep.errors import InputError, bad_value
from fewstep.files import replacing

Condition = Callable[[Sequence[Any]], Any]
Stored = Literal["float32", "float16"]
SOLVERS = ("dpmpp_2m", "heun", "euler")  # deterministic, and what they ask the denoiser about are states of the path


@dataclass(frozen=True)
class PathSettings:
    """How to run the teacher.

    Attributes:
        solver: one of `SOLVERS`.
        batch: samples that run together.
        shard: samples a file; a stopped run goes on from the last whole one.
        seed: of the noise.
        stored: dtype of states and conditions on disk.
        precision, compile: of the teacher's forward, as in the loop's settings.

    Raises:
        InputError: a value out of its range.
    """

    solver: str = "dpmpp_2m"
    batch: int = 64
    shard: int = 512
    seed: int = 0
    stored: Stored = "float32"
    precision: Precision = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        rules = {
            "solver": (self.solver in SOLVERS, f"one of {', '.join(SOLVERS)}"),
            "batch": (self.batch >= 1, "at least 1"),
            "shard": (self.shard >= 1, "at least 1"),
            "stored": (self.stored in get_args(Stored), f"one of {', '.join(get_args(Stored))}"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(bad_value(name, "the teacher's paths", rule, getattr(self, name)))
        check_precision(self.precision)


@dataclass(frozen=True)
class PathTask:
    """What the paths are of: one path a prompt.

    Attributes:
        prompts: one a sample, text or anything else that `condition` takes.
        condition: some of the prompts -> the teacher's condition for them.
        shape: of one sample's state, without the batch.
        times: the teacher's, falling, from noise to the schedule's end.
        steps: the student's; they keep every (len(times) − 1) / steps-th of the times.

    Raises:
        InputError: no prompts, or times that the student's steps do not divide.
    """

    prompts: Sequence[Any]
    condition: Condition
    shape: tuple[int, ...]
    times: tuple[float, ...]
    steps: int

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InputError(bad_value("prompts", "the teacher's paths", "at least one", self.prompts))
        teacher_steps = len(self.times) - 1
        if self.steps < 1 or teacher_steps < 1 or teacher_steps % self.steps:
            rule = f"at least 1 and a divisor of the teacher's {teacher_steps}"
            raise InputError(bad_value("steps", "the student", rule, self.steps))

    @property
    def kept(self) -> tuple[float, ...]:
        """The student's times."""
        return self.times[:: (len(self.times) - 1) // self.steps]


def make_paths(
    teacher: Swappable,
    task: PathTask,
    folder: Path | str,
    settings: PathSettings | None = None,
    *,
    facts: Mapping[str, Any] | None = None,
    show: bool = True,
) -> PathSet:
    """Run the teacher and store its paths in `folder`, going on after the shards that are there.

    `facts` is what else must be equal to go on, as JSON: how the teacher is guided, for one. Ctrl-C finishes and keeps
    the shard in hand, then leaves.

    Raises:
        InputError: the folder holds paths that were made otherwise.
        MachineError: the disk is full, or this machine can't compile.
    """
    settings, folder = settings or PathSettings(), Path(folder)
    index = _started(folder, task, settings, {"teacher": fingerprint(teacher.module), **(facts or {})})
    total, done = len(task.prompts), sum(shard.samples for shard in index.shards)
    with (
        compiled([teacher.module], settings.compile),
        patience() as user,
        bar("teacher paths", total, done, show=show) as progress,
    ):
        for start in range(done, total, settings.shard):
            if user.over:
                raise KeyboardInterrupt
            samples = range(start, min(start + settings.shard, total))
            name = f"shard-{len(index.shards):05d}.safetensors"
            _write(folder / name, _run(teacher, task, samples, settings, progress))
            shard = Shard(name, checksum(folder / name), len(samples))
            index = replace(index, shards=(*index.shards, shard))
            index.write(folder)
    return PathSet(folder, conditions.template_of(task.condition, task.prompts))


def _started(folder: Path, task: PathTask, settings: PathSettings, facts: Mapping[str, Any]) -> Index:
    """The index of what is there, if it is of the same paths, or a new one."""
    digest = sha256("\n".join(str(prompt) for prompt in task.prompts).encode()).hexdigest()
    made_with = {
        **facts,
        "prompts": len(task.prompts),
        "prompts_sha256": digest,
        "shape": list(task.shape),
        "teacher_times": list(task.times),
        **{name: value for name, value in asdict(settings).items() if name not in ("batch", "shard", "compile")},
    }
    if not (folder / INDEX).exists():
        index = Index(task.kept, made_with)
        index.write(folder)
        return index
    index = Index.read(folder)
    now = {**made_with, "times": list(task.kept)}
    before = {**index.made_with, "times": list(index.times)}
    for name in dict.fromkeys([*before, *now]):
        if now.get(name) != before.get(name):
            raise InputError(
                f"{folder} holds paths made with {name} = {before.get(name)!r}, and these have {now.get(name)!r}: "
                "take the same to go on with them, or another folder."
            )
    return index


def _run(
    teacher: Swappable,
    task: PathTask,
    samples: range,
    settings: PathSettings,
    progress: Callable[[int, str], None],
) -> dict[str, Tensor]:
    """The tensors of one shard."""
    parts = []
    for start in range(samples.start, samples.stop, settings.batch):
        part = range(start, min(start + settings.batch, samples.stop))
        parts.append(_run_batch(teacher, task, part, settings))
        progress(part.stop, "")
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return {name: value if name == STATES else _one_row_if_equal(value) for name, value in whole.items()}


@torch.no_grad()
def _run_batch(teacher: Swappable, task: PathTask, samples: range, settings: PathSettings) -> dict[str, Tensor]:
    device = device_of(teacher.module)
    with uncompiled(teacher.module):
        cond, rows = conditions.of(task.condition, task.prompts[samples.start : samples.stop])
    noise = torch.stack([torch.randn(task.shape, generator=generator(settings.seed, "noise", i)) for i in samples])
    recorder = _Recorder(teacher, task.kept[:-1])
    with autocast(device, settings.precision):
        x = start_from(teacher.schedule, noise.to(device), task.times[0])
        x0 = sampler(settings.solver)(recorder, x, task.times, cond)
    states = torch.stack([*(recorder.states[t] for t in task.kept[:-1]), x0], dim=1)
    tensors = {STATES: states, **{CONDITION + name: value for name, value in rows.items()}}
    stored = torch.float16 if settings.stored == "float16" else torch.float32
    return {
        name: (value.to(stored) if value.is_floating_point() else value).cpu().contiguous()
        for name, value in tensors.items()
    }


def start_from(schedule: Schedule, noise: Tensor, t: float) -> Tensor:
    """The state at the first time, for data of unit variance: noise of the standard deviation of x_t."""
    return noise * float((schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2).sqrt())


class _Recorder:
    """A denoiser that keeps the states that it was last asked about at the times to keep."""

    def __init__(self, inner: Denoiser, times: Sequence[float]) -> None:
        self.inner, self.times, self.schedule = inner, set(times), inner.schedule
        self.states: dict[float, Tensor] = {}

    def __call__(self, x_t: Tensor, t: Time, cond: Any = None) -> Tensor:
        if float(t) in self.times:
            self.states[float(t)] = x_t
        return self.inner(x_t, t, cond)


def _one_row_if_equal(value: Tensor) -> Tensor:
    return value[:1].clone() if bool((value == value[:1]).all()) else value


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    with replacing(path) as aside:
        save_file(tensors, str(aside))
