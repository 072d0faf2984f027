"""A distillation as data: what `run` does, from keyword arguments or from a YAML file.

    teacher: zoo:shapes
    prompts: task:shapes
    out: runs/four
    steps: 4
    ladder:
      - {method: kd, iterations: 400}
      - {method: dmd2, iterations: 800, critic_steps: 2}

Without a `ladder` the keys of a rung (method, iterations, rate, …) stand beside the others; with one, those that stand
there hold for all rungs. A rung's own keys are its fields, those of the training loop's settings, and the options of
its method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from fewstep.distill.catalog import Card, card
from fewstep.distill.data.captions import Source, source_of
from fewstep.distill.data.prompts import PromptSource
from fewstep.distill.engine.loop import Settings
from fewstep.distill.engine.parallel import Kind
from fewstep.distill.engine.precision import Precision
from fewstep.distill.export import Stored
from fewstep.distill.losses import Distance, Weighting
from fewstep.distill.methods.backward import Stepping
from fewstep.distill.methods.progressive import halvings
from fewstep.distill.typed import typed
from fewstep.errors import InputError, bad_value
from fewstep.files import read_yaml

TASK = "task:"
Sharing = Literal["copies", "lora"]
Saved = Literal["pipeline", "lora"]
DrawnData = Callable[[str, int, int, int | None], Source]  # of a task's name, samples, seed, frames
Found = TypeVar("Found")


@dataclass(frozen=True)
class Rung:
    """One training: a method and how long. The next rung starts from its student.

    Attributes:
        method: a name in `catalog.CATALOG`.
        iterations: of the training loop.
        batch: samples of one process in one forward pass; `training["accumulate"]` of them make a step.
        steps: the student's in this rung; None: the job's.
        halve_from: progressive only: starts at half of so many steps and halves down to `steps`, a rung each.
        weighting, huber: of the loss (`losses.Distance`), where a method leaves that open.
        training: other values of `loop.Settings`; rates and betas are the method's where they are not here.
        options: of the method.

    Raises:
        InputError: a value that does not fit.
    """

    method: str = "kd"
    iterations: int = 4000
    batch: int = 64
    steps: int | None = None
    halve_from: int | None = None
    weighting: Weighting = "velocity"
    huber: float = 0.0
    training: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("iterations", "batch"):
            if getattr(self, name) < 1:
                raise InputError(bad_value(name, "a rung", "at least 1", getattr(self, name)))
        if self.halve_from is not None and self.method != "progressive":
            raise InputError(bad_value("halve_from", "a rung", "given to progressive alone", self.method))
        own = self.card.options(self.options, f"The method {self.method!r}")
        object.__setattr__(self, "options", own)
        _ = self.distance, self.settings(0)  # they check their own values

    @property
    def card(self) -> Card:
        return card(self.method)

    @property
    def distance(self) -> Distance:
        return Distance(self.weighting, self.huber)

    def settings(self, seed: int) -> Settings:
        own = self.card
        of_method = {"rate": own.rate, "rates": own.rates, "betas": own.betas}
        return Settings(**{"steps": self.iterations, "seed": seed, **of_method, **self.training})

    def facts(self) -> dict[str, Any]:
        """What must be equal for a training to be the same, beside its settings; as JSON."""
        named = ("method", "batch", "weighting", "huber", "options")
        return {"student_steps": self.steps, **{name: getattr(self, name) for name in named}}


TRAINING = {f.name for f in fields(Settings)} - {"steps"}
OF_PATHS = ("teacher_precision", "kept_steps", "paths")
OF_A_RUNG = {f.name for f in fields(Rung)} - {"training", "options"}


@dataclass(frozen=True)
class Job:
    """One distillation.

    Attributes:
        prompts: a list, a text file with one a line, or a function of (n, seed); empty: the captions of `data`.
        out: folder of the run; the student comes to `out/student`.
        data: pictures or videos with captions to train on, where a method takes them: a folder or a Hugging Face data
            set, see `captions.source_of`, or samples by number. Without, the ends of teacher paths serve.
        frames: of a video of the data; None: as many as the teacher makes.
        latents: folder of the encoded data; None: `out/latents`. Students may share one.
        columns: of a data set, if they have other names than "image" and "text", and its "split".
        teacher: what `fewstep.load` takes; only `run` reads it.
        steps: the student's.
        ladder: one training after another.
        teacher_steps: the solver's (DPM-Solver++ 2M) on the paths; a multiple of the steps kept.
        teacher_precision: of the teacher on the paths, "fp32" or "bf16"; None: the first rung's.
        kept_steps: times stored on each path; a multiple of each rung's steps; None: the most of them.
        samples: paths to make; each has its own noise and prompt.
        paths: folder of the paths; None: `out/paths`. Students may share one.
        start: a pipeline whose denoiser the student starts from, or students and weights, whose average it starts from
            (`average.mean_of`); None: the teacher's.
        shift: of the student's times; None: what the teacher uses.
        sampler: how the student is sampled: "euler" or "renoise"; None: the last method's first choice.
        call: arguments of the teacher's call beyond its defaults; not the prompt.
        roles: "copies" of the network for student and critic, or "lora": adapters on the one backbone.
        rank: of the adapters.
        check_every: steps between the guard's looks at the student (`guard`); 0: no guard, and the last weights count.
        show_every: steps between sample grids (`watch.Gallery`); 0: none.
        shown: prompts of a look and of a grid, `draws` samples each.
        tensorboard: write TensorBoard files too.
        parallel: how processes that torchrun started train together: "ddp" or "fsdp"; None: ddp where there are some.
        processes: how many there must be; None: however many there are.
        saved: a whole "pipeline", or a "lora" file for the teacher's pipeline.
        stored: dtype of the student's weights on disk.
        share: don't write the parts that the teacher's folder holds already.
        name: in the student's manifest; None: the teacher's name and the steps.

    Raises:
        InputError: a value that does not fit.
    """

    prompts: PromptSource
    out: Path | str
    data: Path | str | Source | None = None
    frames: int | None = None
    latents: Path | str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    teacher: str = ""
    steps: int = 4
    ladder: Sequence[Rung] = (Rung(),)
    teacher_steps: int = 24
    teacher_precision: Precision | None = None
    kept_steps: int | None = None
    samples: int = 10000
    paths: Path | str | None = None
    start: Path | str | Mapping[str, float] | None = None
    shift: float | None = None
    sampler: Stepping | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    roles: Sharing = "copies"
    rank: int = 32
    check_every: int = 250
    show_every: int = 500
    shown: int = 8
    draws: int = 4
    tensorboard: bool = False
    parallel: Kind | None = None
    processes: int | None = None
    saved: Saved = "pipeline"
    seed: int = 0
    stored: Stored = "float32"
    share: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        choices: dict[str, tuple[str | None, ...]] = {
            "roles": get_args(Sharing),
            "stored": get_args(Stored),
            "sampler": (None, *get_args(Stepping)),
            "teacher_precision": (None, *get_args(Precision)),
            "parallel": (None, *get_args(Kind)),
        }
        rules: dict[str, tuple[bool, str]] = {
            "steps": (self.steps >= 1, "at least 1"),
            "columns": (set(self.columns) <= {"image", "caption", "split"}, "of image, caption and split"),
            "ladder": (len(self.ladder) >= 1, "one rung or more"),
            "data": (
                self._takes_data,
                "left out: prompts are given, and no method takes it",
            ),
            **{
                name: (self.data is not None or getattr(self, name) is None, "left out where there is no data")
                for name in ("frames", "latents")
            },
            "samples": (self.samples >= 1, "at least 1"),
            "rank": (self.rank >= 1, "at least 1"),
            "check_every": (self.check_every >= 0, "0 or more"),
            "show_every": (self.show_every >= 0, "0 or more"),
            "shown": (self.shown >= 2, "at least 2"),
            "draws": (self.draws >= 2, "at least 2"),
            "saved": (self.saved == "pipeline" or self.roles == "lora", "pipeline, or lora where roles are lora"),
            **{
                name: (getattr(self, name) in allowed, f"one of {', '.join(map(str, allowed))}")
                for name, allowed in choices.items()
            },
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(bad_value(name, "distillation", rule, getattr(self, name)))
        for name in OF_PATHS:
            if getattr(self, name) is not None and not self.makes_paths:
                rule = "left out: no teacher paths are made"
                raise InputError(bad_value(name, "distillation", rule, getattr(self, name)))
        for rung in self.rungs:
            self._check(rung)

    def source(self) -> Source | None:
        """The data as samples by number; None without any.

        Raises:
            InputError: it can't be read.
        """
        if not isinstance(self.data, str | Path):
            return self.data
        return source_of(self.data, **dict[str, Any](self.columns))

    @property
    def makes_paths(self) -> bool:
        """Whether a method needs the teacher's own paths, or real data that is not there."""
        needed = {rung.card.needs for rung in self.ladder}
        return "paths" in needed or ("latents" in needed and self.data is None)

    @property
    def _takes_data(self) -> bool:
        cards = [rung.card for rung in self.ladder]
        no_use = self.data is not None and bool(self.prompts)  # else its captions are the prompts
        return not no_use or any(card.needs != "paths" or card.with_data for card in cards)

    def _check(self, rung: Rung) -> None:
        assert rung.steps is not None
        if rung.card.needs == "paths" and self.kept % rung.steps:
            raise InputError(bad_value("kept_steps", "distillation", f"a multiple of {rung.steps} steps", self.kept))
        if self.roles == "lora" and rung.card.two_times:
            raise InputError(f"{rung.method} tells the network a second time, which adapters can't: take 'copies'.")
        if self.sampler is not None and self.sampler not in rung.card.samplers:
            rule = f"{' or '.join(rung.card.samplers)} for {rung.method}"
            raise InputError(bad_value("sampler", "distillation", rule, self.sampler))

    @property
    def rungs(self) -> list[Rung]:
        """All trainings, each with its steps: a progressive rung is as many as it halves."""
        all_: list[Rung] = []
        for rung in self.ladder:
            steps = rung.steps or self.steps
            if rung.method == "progressive":
                halved = halvings(rung.halve_from or 4 * steps, steps)
                all_ += [replace(rung, steps=n, halve_from=None) for n in halved]
            else:
                all_.append(replace(rung, steps=steps))
        return all_

    @property
    def kept(self) -> int:
        """The times to store on each path."""
        on_paths = [rung.steps or 1 for rung in self.rungs if rung.card.needs == "paths"]
        return self.kept_steps or max([1, *on_paths])

    def facts(self) -> dict[str, Any]:
        """What made a student, for its manifest; as JSON."""
        named = ("steps", "teacher_steps", "teacher_precision", "samples", "shift", "roles", "seed")
        rungs = [{**rung.facts(), **asdict(rung.settings(self.seed))} for rung in self.rungs]
        places = {name: None if (place := getattr(self, name)) is None else _place(place) for name in ("start", "data")}
        return {**{name: getattr(self, name) for name in named}, "call": dict(self.call), **places, "ladder": rungs}

    @property
    def stepping(self) -> Stepping:
        """How the student is sampled."""
        return self.sampler or self.rungs[-1].card.samplers[0]


def _place(value: Any) -> Any:
    """What names data or a start in a manifest, as JSON."""
    if isinstance(value, str | Path):
        return str(value)
    return dict(value if isinstance(value, Mapping) else value.facts)


def read_job(
    config: Mapping[str, Any] | Path | str,
    *,
    tasks: Callable[[str], PromptSource] | None = None,
    drawn: DrawnData | None = None,
) -> Job:
    """The job of a configuration: a mapping or a YAML file; `prompts: task:NAME` asks `tasks`, `data: task:NAME` asks
    `drawn` for as many samples as the job has.

    Raises:
        InputError: an unknown or missing key, or a value that does not fit.
    """
    where = "The configuration" if isinstance(config, Mapping) else str(config)
    values = dict(config) if isinstance(config, Mapping) else read_config(Path(config))
    hints = get_type_hints(Job)
    own = {name: typed(name, values.pop(name), hints[name], where) for name in hints if name in values}
    needed = [f.name for f in fields(Job) if f.default is MISSING and f.default_factory is MISSING]
    if "data" in own:
        own.setdefault("prompts", ())
    if missing := [name for name in needed if name not in own]:
        raise InputError(f"{where} must have the key {missing[0]!r}.")
    ladder = own.pop("ladder", [{}])
    if not isinstance(ladder, list) or not all(isinstance(rung, Mapping) for rung in ladder):
        raise InputError(bad_value("ladder", where, "a list of rungs, each with keys and values", ladder))
    own["ladder"] = tuple(_rung({**values, **rung}, where) for rung in ladder)
    job = Job(**own)
    if name := _task_in(job.prompts):
        job = replace(job, prompts=_known(tasks, "prompts", name, where)(name))
    if name := _task_in(job.data):
        job = replace(job, data=_known(drawn, "data", name, where)(name, job.samples, job.seed, job.frames))
    return job


def _task_in(value: Any) -> str:
    """The name in `task:NAME`; empty where it is something else."""
    return value.removeprefix(TASK) if isinstance(value, str) and value.startswith(TASK) else ""


def _known(tasks: Found | None, what: str, name: str, where: str) -> Found:
    if tasks is None:
        raise InputError(f"{where} takes {what} from {TASK + name!r}, and no tasks are known here.")
    return tasks


def _rung(values: Mapping[str, Any], where: str) -> Rung:
    """A rung from one flat mapping."""
    own = {name: values[name] for name in values if name in OF_A_RUNG}
    training = {name: values[name] for name in values if name in TRAINING}
    options = {name: values[name] for name in values if name not in OF_A_RUNG | TRAINING}
    of_method = card(own.get("method", "kd")).choices
    if unknown := [name for name in options if name not in of_method]:
        known = [f.name for f in fields(Job)] + sorted(OF_A_RUNG | TRAINING) + sorted(of_method)
        raise InputError(f"{where} has the unknown key {unknown[0]!r}; known are {', '.join(known)}.")
    return Rung(**_typed(own, Rung, where), training=_typed(training, Settings, where), options=options)


def _typed(values: Mapping[str, Any], of: type, where: str) -> dict[str, Any]:
    hints = get_type_hints(of)
    return {name: typed(name, value, hints[name], where) for name, value in values.items()}


def read_config(path: Path) -> dict[str, Any]:
    """The keys and values of a configuration file.

    Raises:
        InputError: it can't be read, or holds something else.
    """
    value = read_yaml(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold keys and values, like 'teacher: zoo:shapes'.")
    return value
