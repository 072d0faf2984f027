"""A distillation as data: what `run` does, from keyword arguments or from a YAML file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from fewstep.distill.export import Stored
from fewstep.distill.loop import Settings
from fewstep.distill.losses import Distance, Weighting
from fewstep.distill.methods.progressive import halvings
from fewstep.distill.precision import Precision
from fewstep.distill.prompts import PromptSource
from fewstep.errors import InputError, bad_value

Method = Literal["kd", "progressive"]
TASK = "task:"


@dataclass(frozen=True)
class Job:
    """One distillation.

    Attributes:
        prompts: a list, a text file with one a line, or a function of (n, seed).
        out: folder of the run; the pipeline comes to `out/student`.
        teacher: what `fewstep.load` takes; only `run` reads it.
        method: "kd" or "progressive".
        steps: the student's.
        teacher_steps: the solver's (DPM-Solver++ 2M) on the paths; a multiple of the steps kept.
        kept_steps: times stored on each path; a multiple of `steps`, so that students of fewer steps can share paths.
        samples: paths to make; each has its own noise and prompt.
        halve_from: progressive only: Euler steps of the teacher in the first stage, `steps` times a power of two.
        paths: folder of the paths; None: `out/paths`. Students may share one.
        start: a pipeline whose denoiser the student starts from; None: the teacher's.
        shift: of the student's times; None: what the teacher uses.
        call: arguments of the teacher's call beyond its defaults; not the prompt.
        iterations, batch, rate, …: of the training loop (`loop.Settings`); a progressive stage takes `iterations` each.
        weighting, huber: of the loss (`losses.Distance`).
        stored: dtype of the student's weights on disk.
        share: don't write the parts that the teacher's folder holds already.
        name: in the student's manifest; None: the teacher's name and the steps.
    """

    prompts: PromptSource
    out: Path | str
    teacher: str = ""
    method: Method = "kd"
    steps: int = 4
    teacher_steps: int = 24
    kept_steps: int | None = None
    samples: int = 10000
    halve_from: int | None = None
    paths: Path | str | None = None
    start: Path | str | None = None
    shift: float | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    iterations: int = 4000
    batch: int = 64
    rate: float = 3e-4
    warmup: int = 50
    decay: float = 1.0
    optimizer: str = "adamw"
    ema: float = 0.999
    weighting: Weighting = "velocity"
    huber: float = 0.0
    precision: Precision = "fp32"
    compile: bool = False
    save_every: int = 500
    seed: int = 0
    stored: Stored = "float32"
    share: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        rules = {
            "method": (self.method in get_args(Method), f"one of {', '.join(get_args(Method))}"),
            "steps": (self.steps >= 1, "at least 1"),
            "samples": (self.samples >= 1, "at least 1"),
            "batch": (self.batch >= 1, "at least 1"),
            "stored": (self.stored in get_args(Stored), f"one of {', '.join(get_args(Stored))}"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(bad_value(name, "distillation", rule, getattr(self, name)))
        _ = self.settings, self.distance, self.stages  # they check their own values
        if self.kept % self.steps:
            raise InputError(bad_value("kept_steps", "distillation", f"a multiple of {self.steps} steps", self.kept))

    @property
    def kept(self) -> int:
        return self.kept_steps or self.steps

    @property
    def settings(self) -> Settings:
        own = {name: getattr(self, name) for name in (f.name for f in fields(Settings)) if hasattr(self, name)}
        return Settings(**{**own, "steps": self.iterations})

    @property
    def distance(self) -> Distance:
        return Distance(self.weighting, self.huber)

    @property
    def stages(self) -> list[int]:
        """The student's steps in each stage."""
        if self.method == "kd":
            return [self.steps]
        return halvings(self.halve_from or 4 * self.steps, self.steps)


def read_job(config: Mapping[str, Any] | Path | str, *, tasks: Callable[[str], PromptSource] | None = None) -> Job:
    """The job of a configuration: the fields of `Job`, as a mapping or a YAML file; `prompts: task:NAME` asks `tasks`.

    Raises:
        InputError: an unknown or missing key, or a value that does not fit.
    """
    where = "The configuration" if isinstance(config, Mapping) else str(config)
    values = dict(config) if isinstance(config, Mapping) else _read_yaml(Path(config))
    known = {f.name: f for f in fields(Job)}
    if unknown := [name for name in values if name not in known]:
        raise InputError(f"{where} has the unknown key {unknown[0]!r}; known are {', '.join(known)}.")
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in needed if name not in values]:
        raise InputError(f"{where} must have the key {missing[0]!r}.")
    hints = get_type_hints(Job)
    values = {name: _typed(name, value, hints[name], where) for name, value in values.items()}
    prompts = values["prompts"]
    if isinstance(prompts, str) and prompts.startswith(TASK):
        if tasks is None:
            raise InputError(f"{where} takes prompts from {prompts!r}, and no tasks are known here.")
        values["prompts"] = tasks(prompts.removeprefix(TASK))
    return Job(**values)


def _typed(name: str, value: Any, hint: Any, where: str) -> Any:
    """The value as its field wants it; YAML reads 3e-4 as text."""
    kinds = get_args(hint) or (hint,)
    if value is None and type(None) in kinds:
        return None
    if bool in kinds and not isinstance(value, bool):
        raise InputError(bad_value(name, where, "true or false", value))
    if int not in kinds and float not in kinds:
        return value
    kind = int if int in kinds else float
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not isfinite(number) or number != kind(number):
        raise InputError(bad_value(name, where, "a whole number" if kind is int else "a number", value))
    return kind(number)


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"Could not read a configuration from {path}: {str(error).splitlines()[0]}.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold keys and values, like 'teacher: zoo:shapes'.")
    return value
