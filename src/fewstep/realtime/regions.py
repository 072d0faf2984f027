"""The part of a chunk that moves. The first step is taken on all tokens, and tells which of them go where the chunk
before did not have them; after it only these are computed. All others end as they are there.

In attention what moves sees everything: the window, and of the tokens beside it the keys and values of the first step.
The chunk is read into the window whole, as always, so nothing of this is left in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fewstep.diffusion.schedule import Schedule, Time
from fewstep.models.causal import temporal
from fewstep.models.dispatch import attentions
from fewstep.models.grid import Grid
from fewstep.models.model import Model
from fewstep.models.passes import Kept, Layout, Rows
from fewstep.models.sparse import Sparse
from fewstep.models.streams import BlockList, block_lists

SHARE = 0.5  # of the tokens move; see docs/live.md for what less does


@dataclass(frozen=True, eq=False)
class Parts:
    """A causal transformer whose blocks can run on some of a chunk's tokens."""

    transformer: nn.Module
    sparse: Sparse

    @classmethod
    def of(cls, model: Model) -> Parts:
        """Those of a causal student. Asked again it gives the same ones, which are in the transformer only once."""
        name, transformer = next(iter(model.denoisers.items()))
        if transformer not in _KNOWN:
            lists = block_lists(model, name)
            # What `Sparse` would measure is known here: the chunk's tokens are the whole stream, and all of the keys.
            layouts = {one.path: Layout(True, _clips_keys(one, temporal(transformer).attention)) for one in lists}
            _KNOWN[transformer] = Sparse(lists, layouts).install()
        return cls(transformer, _KNOWN[transformer])


_KNOWN: WeakKeyDictionary[nn.Module, Sparse] = WeakKeyDictionary()


def _clips_keys(one: BlockList, attention: str) -> dict[tuple[str, int], bool]:
    """The attention over the clip's own tokens, in a block of the list."""
    return {(path, 1): True for path, _ in attentions(one.modules[0]) if path.rpartition(".")[2] == attention}


@dataclass
class Moving:
    """The calls of one chunk.

    Attributes:
        parts, schedule: of the model.
        before: what its still tokens end as, (1, channels, frames, height, width).
        share: of its tokens, those that are computed after the first call, in (0, 1].
    """

    parts: Parts
    schedule: Schedule
    before: Tensor
    share: float
    _kept: Kept = field(default_factory=dict)
    _rows: Rows | None = None
    _moves: Tensor | None = None  # (1, tokens, 1)

    def __call__(self, predict: Callable[[], Tensor], x_t: Tensor, t: Time) -> Tensor:
        """What `predict`, a call of the denoiser for x_t at t, says where the chunk moves, and elsewhere that x0 is
        what was before."""
        prediction = self.parts.sparse.run(predict, self._kept, self._rows)
        grid = Grid.of(self.parts.transformer, prediction)
        if self._moves is None:
            self._look(grid, self.schedule.to_x0(prediction, x_t, t))
            assert self._moves is not None
        still = self.schedule.from_x0(self.before, x_t, t)
        return grid.join(torch.where(self._moves, grid.split(prediction), grid.split(still)))

    def _look(self, grid: Grid, x0: Tensor) -> None:
        """Which tokens move, by the first step's guess of the chunk."""
        apart = grid.split((x0 - self.before).float()).square().mean(2)
        active = apart.topk(math.ceil(self.share * grid.tokens)).indices.sort().values
        self._rows = Rows(active, grid.tokens)
        self._moves = torch.zeros_like(apart, dtype=torch.bool).scatter_(1, active, True)[..., None]
        # The call may have had the chunk before in front of it.
        self._kept = {
            slot: (key[:, -grid.tokens :], value[:, -grid.tokens :]) for slot, (key, value) in self._kept.items()
        }
