"""Knowledge distillation into a causal video student (CausVid, arXiv 2412.07772, section 4.3), with the past at hand.

The teacher's paths are those of a model that sees all frames. As in `kd`, one student step from a state of the path
should land on its next one, or on its end where the student's x0 is noised anew between its steps. Each chunk of a clip
is at a step of its own, and sees the chunks before as they will be when a video is made: at the end of their paths.

What happens after a clip's length, the teacher does not know. Longer clips of data show it. Where a chunk sees a whole
window of them, hardly more than one thing can come next, and the straight line from noise to it serves as its path; of
a chunk that sees less, it would teach the mean of all that can.

The student's own past will be less exact than a teacher's. So what is seen of the past is noised a little, by more or
less (arXiv 2408.14837, section 3.2.1), and the student is not told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.diffusion.schedule import Schedule
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Update
from fewstep.distill.engine.roles import Swappable
from fewstep.distill.losses import Distance, step_target
from fewstep.distill.methods.backward import Stepping
from fewstep.errors import InputError, bad_value
from fewstep.models.causal import Causal, causal_of
from fewstep.models.window import Chunks

Longer = Callable[[torch.Generator], PathBatch]  # clips of data, drawn at random


@dataclass(frozen=True, eq=False)
class CausalKD:
    """The steps of a sample's chunks are drawn evenly and independently.

    Attributes:
        student: causal in `chunks`.
        past_noise: the most that the past is noised by, as a part of the standard deviation of data.
        longer: draws a batch of clips of data, with which every other update is made; None: there are none.

    Raises:
        InputError: a clip is no whole number of chunks, or a `past_noise` below 0.
    """

    student: Swappable
    chunks: Chunks
    sampler: Stepping = "euler"
    distance: Distance = field(default_factory=Distance)
    past_noise: float = 0.1
    longer: Longer | None = None

    def __post_init__(self) -> None:
        if not self.past_noise >= 0:
            raise InputError(bad_value("past_noise", "causal_kd", "0 or above", self.past_noise))

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student.module}

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {}

    def updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        learnt_from = 0
        if self.longer is not None and bool(torch.rand((), generator=generator) < 0.5):
            batch = straight(self.student.schedule, self.longer(generator), batch.times, generator)
            learnt_from = self._whole_window(batch)
        samples, steps = len(batch.states), len(batch.times) - 1
        k = torch.randint(steps, (samples, whole_chunks(batch.states[:, -1], self.chunks)), generator=generator)
        k = k.repeat_interleave(self.chunks.size, 1).to(batch.states.device)
        (x_t, t), (x_s, s) = (at_frames(batch, place) for place in (k, self._landing(k, steps)))
        prediction = self._predicted(x_t, t, self._past(batch.states[:, -1], generator), batch.cond)
        told, x, x_next = (each_frame(one, learnt_from) for one in (prediction, x_t, x_s))
        t, s = (time[:, learnt_from:].flatten() for time in (t, s))
        wanted = step_target(self.student.schedule, x, t, x_next, s)
        yield Update("student", self.student.module, self.distance(self.student.schedule, told, x, t, wanted))

    def _landing(self, k: Tensor, steps: int) -> Tensor:
        return k + 1 if self.sampler == "euler" else torch.full_like(k, steps)

    def _past(self, x0: Tensor, generator: torch.Generator) -> Tensor:
        """Clips (batch, channels, frames, height, width) as later chunks see them."""
        much = self.past_noise * torch.rand(len(x0), 1, 1, 1, 1, generator=generator)
        return x0 + (much * torch.randn(x0.shape, generator=generator)).to(x0)

    def _predicted(self, x_t: Tensor, t: Tensor, past: Tensor, cond: Any) -> Tensor:
        """What the student predicts for each chunk of x_t, at times t (batch, frames), after the past: as x_t."""
        causal, end = causal_of(self.student.module), torch.full_like(t, self.student.schedule.end)
        assert isinstance(causal, Causal)
        with causal.beside():
            both: Tensor = self.student(torch.cat([past, x_t], 2), torch.cat([end, t], 1), cond)
        return both[:, :, x_t.shape[2] :]

    def _whole_window(self, batch: PathBatch) -> int:
        """The first frame of a clip that sees a whole window.

        Raises:
            InputError: there is none.
        """
        frames, window = batch.states.shape[3], self.chunks.window
        first = 0 if window is None else window - self.chunks.size
        if window is None or first >= frames:
            least = "a 'window'" if window is None else f"data of more than the {first} latent frames"
            raise InputError(f"causal_kd learns from longer clips where a whole window is seen: it needs {least}.")
        return first


def straight(schedule: Schedule, data: PathBatch, times: tuple[float, ...], generator: torch.Generator) -> PathBatch:
    """Data with the straight lines from noise to it as its paths."""
    x0 = data.states[:, -1]
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    return PathBatch(torch.stack([schedule.add_noise(x0, noise, t) for t in times], 1), times, data.cond)


def whole_chunks(clips: Tensor, chunks: Chunks) -> int:
    """The number of chunks in clips (batch, channels, frames, height, width).

    Raises:
        InputError: they are no clips, or no whole number of chunks long.
    """
    if clips.dim() != 5 or clips.shape[2] % chunks.size:
        has = f"clips of {clips.shape[2]} latent frames" if clips.dim() == 5 else "no clips"
        raise InputError(f"A causal student in chunks of {chunks.size} needs whole ones, and the teacher makes {has}.")
    return clips.shape[2] // chunks.size


def at_frames(batch: PathBatch, k: Tensor) -> tuple[Tensor, Tensor]:
    """States and times with each frame at its own place on the path: k (batch, frames) -> x_t (batch, channels, frames,
    height, width), t (batch, frames)."""
    rows, frames = torch.arange(len(k))[:, None], torch.arange(k.shape[1])[None]
    states = batch.states.transpose(2, 3)[rows, k.cpu(), frames]  # (batch, frames, channels, height, width)
    times = torch.tensor(batch.times, dtype=torch.float64, device=k.device)
    return states.transpose(1, 2), times[k]


def each_frame(clips: Tensor, first: int) -> Tensor:
    """The frames of clips from the first on, one sample each: (n, channels, height, width)."""
    return clips[:, :, first:].transpose(1, 2).flatten(0, 1)
