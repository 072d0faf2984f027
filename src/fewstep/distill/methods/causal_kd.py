"""Knowledge distillation into a causal video student (CausVid, arXiv 2412.07772, section 4.3): each chunk of frames is
at a step of its own (diffusion forcing, arXiv 2407.01392) and sees only the chunks before.

The teacher's paths are those of a model that sees all frames. As in `kd`, one student step from a state of the path
should land on its next one, or on its end where the student's x0 is noised anew between its steps. Here the chunks of a
clip are at different states, some of them clean, as the past is when a video is made chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Update
from fewstep.distill.engine.roles import Swappable
from fewstep.distill.losses import Distance, step_target
from fewstep.distill.methods.backward import Stepping
from fewstep.errors import InputError
from fewstep.models.window import Chunks


@dataclass(frozen=True, eq=False)
class CausalKD:
    """The steps of a sample's chunks are drawn evenly and independently; a chunk is clean as often as at each of them,
    and then not learnt from. The last chunk, which is nobody's past, never is. `student`: causal in `chunks`.

    Raises:
        InputError: a clip is no whole number of chunks.
    """

    student: Swappable
    chunks: Chunks
    sampler: Stepping = "euler"
    distance: Distance = field(default_factory=Distance)

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student.module}

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {}

    def updates(self, batch: PathBatch, generator: torch.Generator) -> Iterator[Update]:
        samples, steps = len(batch.states), len(batch.times) - 1
        parts = whole_chunks(batch.states[:, -1], self.chunks)
        k = torch.randint(steps + 1, (samples, parts), generator=generator)
        k[:, -1] = torch.randint(steps, (samples,), generator=generator)
        k = k.repeat_interleave(self.chunks.size, 1).to(batch.states.device)
        after = (k + 1).clamp(max=steps) if self.sampler == "euler" else torch.full_like(k, steps)
        (x_t, t), (x_s, s) = at_frames(batch, k), at_frames(batch, after)
        schedule, learnt = self.student.schedule, k < steps
        prediction = self.student(x_t, t, batch.cond)
        told, x, x_next = (each_frame(one, learnt) for one in (prediction, x_t, x_s))
        wanted = step_target(schedule, x, t[learnt], x_next, s[learnt])
        yield Update("student", self.student.module, self.distance(schedule, told, x, t[learnt], wanted))


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


def each_frame(clips: Tensor, chosen: Tensor) -> Tensor:
    """The frames of clips that `chosen` (batch, frames) names: (n, channels, height, width)."""
    return clips.transpose(1, 2)[chosen.to(clips.device)]
