"""Looking at a student while it learns: every so many steps its average draws the same prompts from the same noise.

    gallery = Gallery(pipe, manifest, prompts, "run", every=500, score=score)
    train(distiller, batches, "run", settings, watch=gallery)

It runs the real pipeline, with the scheduler, steps and call that `export` will write, so what it shows is what the
student's folder will give. In `run/` it leaves

    samples/teacher.png, samples/step-00000500.png    labelled grids, a row a prompt
    metrics.jsonl                                     a line a grid: {"step": 500, …, "distance": 0.12}

with what `score` says of the samples, and how far they are from the teacher's (`score.distance`). A zoo task as score:

    asks = dict(task.prompts(64, seed=1))
    score = lambda prompts, images: {"prompt_accuracy": task.accuracy([asks[p] for p in prompts], images)}

Training goes on as if nothing had been drawn: random states, modes, weights, gradients and the pipeline stay.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fewstep.distill.data.seeds import derive, generator
from fewstep.distill.engine.precision import uncompiled
from fewstep.distill.engine.roles import device_of
from fewstep.distill.schedulers import student_scheduler
from fewstep.distill.watching import grid
from fewstep.distill.watching.score import distance
from fewstep.errors import InputError, bad_value
from fewstep.files import replacing, write_text
from fewstep.models.fingerprint import fingerprint
from fewstep.models.load import for_each, with_defaults
from fewstep.models.manifest import Manifest
from fewstep.models.model import Model

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Array = NDArray[Any]
Score = Callable[[Sequence[str], Array], Mapping[str, float]]


def itself(module: nn.Module) -> nn.Module:
    return module


@dataclass(frozen=True, eq=False)
class Gallery:
    """What to draw, how often, and where to; called after each training step.

    Attributes:
        pipe: the teacher's pipeline.
        manifest: the student's, as it will be exported: its call, steps and times.
        prompts: drawn and scored, the same each time.
        folder: of the run.
        every: steps between grids.
        last: the run's last step, drawn as well.
        draws: samples of each prompt, each from its own noise.
        shown: how many of the prompts are in the grids.
        batch: samples in one call of the pipeline.
        seed: of the noise.
        call: arguments of the teacher's call beyond its defaults.
        component: which part of the pipeline the student takes the place of.
        watched: the name of its average.
        plain: from that average to the module that would be exported: an adapter merged, a second time folded.
        scheduler: the student's; None: an Euler scheduler for its times, as `export` makes it.
        writing: whether this process writes. Of many one does, and all draw: averages may be sharded.
        score: of the prompts, one for each sample, and the samples (n, height, width, 3) or (n, frames, height, width,
            3), values in [0, 1]: numbers by name.

    Raises:
        InputError: a value out of its range, or times that no shift of a flow scheduler gives.
    """

    pipe: DiffusionPipeline
    manifest: Manifest
    prompts: Sequence[str]
    folder: Path | str
    every: int = 500
    last: int | None = None
    draws: int = 4
    shown: int = 8
    batch: int = 8
    seed: int = 0
    call: Mapping[str, Any] = field(default_factory=dict)
    component: str = "transformer"
    watched: str = "student"
    plain: Callable[[nn.Module], nn.Module] = itself
    scheduler: Any = None
    writing: bool = True
    score: Score | None = None

    def __post_init__(self) -> None:
        rules = {
            "every": (self.every >= 1, "at least 1"),
            "draws": (self.draws >= 1, "at least 1"),
            "shown": (self.shown >= 1, "at least 1"),
            "batch": (self.batch >= 1, "at least 1"),
            "prompts": (bool(self.prompts), "at least one prompt"),
            "manifest": (None not in (self.manifest.steps, self.manifest.times), "one with steps and times"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(bad_value(name, "the sample gallery", rule, getattr(self, name)))
        if len(self._texts) < 2:
            raise InputError(bad_value("draws", "the sample gallery", "2 or more of a single prompt", self.draws))
        _ = self._scheduler  # checks the times

    def __call__(self, step: int, averages: Mapping[str, nn.Module]) -> None:
        """After this step, counted from 1; draws where it is time to."""
        if step % self.every == 0 or step == self.last:
            self.draw(step, averages[self.watched])

    def draw(self, step: int, average: nn.Module) -> dict[str, Any]:
        """Draw, score and write now; returns the line of metrics, empty in a process that does not write.

        Raises:
            InputError: the pipeline gives no images or frames.
            MachineError: the disk is full.
        """
        teacher = self._teacher
        with undisturbed(self.pipe, average):
            module = _in_dtypes_of(getattr(self.pipe, self.component), self.plain(average))
            parts = {self.component: module.eval(), "scheduler": copy.deepcopy(self._scheduler)}
            with swapped(self.pipe, self.manifest, **parts), uncompiled(module):
                samples = self._drawn({"num_inference_steps": self.manifest.steps})
            if not self.writing:
                return {}
            line = {"step": step, **self._said(samples, teacher)}
        self._save(f"step-{step:08d}", f"step {step}: the student in {self.manifest.steps} steps", samples)
        _put(Path(self.folder) / "metrics.jsonl", line)
        return line

    @cached_property
    def _texts(self) -> list[str]:
        return [prompt for prompt in self.prompts for _ in range(self.draws)]

    @cached_property
    def _scheduler(self) -> Any:
        assert self.manifest.times is not None
        renoise = self.manifest.sampler == "renoise"
        return self.scheduler or student_scheduler(self.pipe, self.manifest.times, renoise=renoise)

    @cached_property
    def _teacher(self) -> Array:
        """The teacher's samples at its own steps; read again where the same were drawn before."""
        path, module = Path(self.folder) / "samples" / "teacher.npz", getattr(self.pipe, self.component)
        asked = json.dumps([self._texts, self.seed, dict(self.call), fingerprint(module)], default=str)
        samples = _kept(path, asked)
        if samples is None:
            own = swapped(self.pipe, None, scheduler=copy.deepcopy(self.pipe.scheduler))
            with undisturbed(self.pipe, module), uncompiled(module), own:
                samples = self._drawn(self.call)
            if not self.writing:
                return samples
            self._save("teacher", "the teacher", samples)
            with replacing(path) as aside:
                np.savez(aside, samples=samples, asked=asked)
        return samples

    def _drawn(self, call: Mapping[str, Any]) -> Array:
        """Samples as uint8, (prompts, draws, height, width, 3); of videos there are frames before the height."""
        drawn = []
        for start in range(0, len(self._texts), self.batch):
            some = self._texts[start : start + self.batch]
            noise = [generator("gallery", self.seed, start + i) for i in range(len(some))]
            torch.manual_seed(derive("gallery", self.seed, start))  # schedulers that noise anew take no generator
            own = {name: for_each(value, some) if name == "negative_prompt" else value for name, value in call.items()}
            drawn.append(_pixels(self.pipe(prompt=some, generator=noise, output_type="np", **own)))
        samples = np.concatenate(drawn)
        return samples.reshape(len(self.prompts), self.draws, *samples.shape[1:])

    def _said(self, samples: Array, teacher: Array) -> dict[str, float]:
        told: dict[str, float] = {}
        if self.score is not None:
            flat = samples.reshape(-1, *samples.shape[2:]).astype(np.float32) / 255
            told = {name: float(value) for name, value in self.score(self._texts, flat).items()}
        student, wanted = (torch.from_numpy(x).movedim(-1, 2) for x in (samples, teacher))
        told.setdefault("distance", distance(student, wanted))
        return told

    def _save(self, name: str, title: str, samples: Array) -> None:
        shown = grid.grid_of(title, self.prompts[: self.shown], samples[: self.shown])
        grid.save(shown, Path(self.folder) / "samples" / f"{name}.png")


def each(*watches: Callable[[int, Mapping[str, nn.Module]], None]) -> Callable[[int, Mapping[str, nn.Module]], None]:
    """Several watches as one, called in this order."""

    def watch(step: int, averages: Mapping[str, nn.Module]) -> None:
        for one in watches:
            one(step, averages)

    return watch


@contextmanager
def undisturbed(pipe: DiffusionPipeline, module: nn.Module) -> Iterator[None]:
    """Without gradients and in evaluation inside the block; random states and each part's mode are restored."""
    modules = [module, *Model(pipe).modules.values()]
    modes = [(part, part.training) for whole in modules for part in whole.modules()]
    python, numpy, device = random.getstate(), np.random.get_state(), device_of(module)
    kind, devices = ("cuda", []) if device.type == "cpu" else (device.type, [device])
    with torch.random.fork_rng(devices=devices, device_type=kind), torch.no_grad():
        try:
            for whole in modules:
                whole.eval()
            yield
        finally:
            for part, mode in modes:
                part.training = mode
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def swapped(pipe: DiffusionPipeline, manifest: Manifest | None, **parts: Any) -> Iterator[None]:
    """The pipeline with other parts inside the block, silent, and with the defaults of `manifest` for its call."""
    before, kind = {name: getattr(pipe, name) for name in parts}, pipe.__class__
    bar = vars(pipe).get("_progress_bar_config")
    try:
        for name, part in parts.items():
            setattr(pipe, name, part)
        if manifest is not None:
            with_defaults(pipe, manifest)
        pipe.set_progress_bar_config(disable=True)
        yield
    finally:
        pipe.__class__ = kind
        for name, part in before.items():
            setattr(pipe, name, part)
        pipe.set_progress_bar_config(**(bar or {}))


def _in_dtypes_of(other: nn.Module, module: nn.Module) -> nn.Module:
    """The module, or a copy in the dtypes of `other`, the teacher's: it may run in half precision, averages do not."""
    wanted = {name: value.dtype for name, value in _tensors(other).items()}
    mine = _tensors(module)
    if all(value.dtype == wanted.get(name, value.dtype) for name, value in mine.items()):
        return module
    cast: dict[int, Any] = {}  # what it holds is not copied
    for name, value in mine.items():
        new = value.detach().to(wanted.get(name, value.dtype))
        cast[id(value)] = nn.Parameter(new, requires_grad=False) if isinstance(value, nn.Parameter) else new
    return copy.deepcopy(module, cast)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(chain(module.named_parameters(), module.named_buffers()))


def _pixels(output: Any) -> Array:
    """The samples in a pipeline's output as uint8; what is not a number is black."""
    found = getattr(output, "images", None)
    found = getattr(output, "frames", None) if found is None else found
    values = None if found is None else np.asarray(found)
    if values is None or values.ndim not in (4, 5) or values.shape[-1] != 3:
        shape = f"an array of {values.shape}" if values is not None else type(output).__name__
        raise InputError(f"A sample gallery needs a pipeline that gives colour images or frames. Got {shape}.")
    pixels: Array = (np.nan_to_num(values, nan=0.0).clip(0, 1) * 255).round().astype(np.uint8)
    return pixels


def _kept(path: Path, asked: str) -> Array | None:
    try:
        with np.load(path) as file:
            return np.asarray(file["samples"]) if str(file["asked"]) == asked else None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _put(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line; those of this step and later ones are of a part of the run that was lost, and go."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [text for text in lines if json.loads(text)["step"] < line["step"]]
    write_text(path, "".join(f"{text}\n" for text in [*kept, json.dumps(line)]))
