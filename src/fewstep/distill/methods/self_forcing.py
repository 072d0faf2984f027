"""Self-Forcing (arXiv 2506.08009): a causal video student learns on the past that it makes itself.

A clip is rolled out chunk by chunk with the window of keys and values that it will have in use. One exit step is drawn
for all chunks: the steps before it run without a gradient, the step itself gives the chunk and has one, and the window
keeps the chunk as it came out, clean. The whole clip is then held against the teacher by distribution matching, as in
`dmd2`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.roles import Swappable
from fewstep.distill.methods.backward import guess, simulate
from fewstep.distill.methods.causal_kd import whole_chunks
from fewstep.models.causal import Causal, causal_of
from fewstep.models.window import Chunks, Window


@dataclass(frozen=True)
class ChunkRollout:
    """How a causal student's samples are made in training; see `backward.Sampling`.

    Attributes:
        times: the student's, falling, with the end.
        chunks: as the student's module has them.
    """

    times: Sequence[float]
    chunks: Chunks

    def sample(self, student: Swappable, batch: PathBatch, generator: torch.Generator) -> Tensor:
        exit_step = int(torch.randint(len(self.times) - 1, (), generator=generator))
        return torch.cat(list(self._chunks(student, batch, exit_step, generator)), 2)

    def _chunks(
        self, student: Swappable, batch: PathBatch, exit_step: int, generator: torch.Generator
    ) -> Iterator[Tensor]:
        causal, window, clips = causal_of(student.module), Window(self.chunks), batch.states[:, -1]
        assert isinstance(causal, Causal)
        for noise in clips.chunk(whole_chunks(clips, self.chunks), 2):
            fresh = torch.randn(noise.shape, generator=generator).to(noise.device)
            with causal.after(window):
                x = simulate(student, fresh, self.times, exit_step, batch.cond, generator)
            with causal.after(window):
                x0 = guess(student, x, float(self.times[exit_step]), batch.cond)
            yield x0
            with torch.no_grad(), causal.after(window, keep=noise.shape[2]):
                student(x0.detach(), student.schedule.end, batch.cond)
