"""`Regions`: at most steps only the tokens that move are computed; the others are forecast, each from its own last
steps, and are seen by attention as they last were.

Where the call has a `mask_image`, as inpainting pipelines take it, what it covers is the region.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.calibrate.curve import relative_change
from fewstep.calibrate.run import measuring
from fewstep.calibrate.stack import first_of, with_first
from fewstep.calibrate.steps import Requests, Step
from fewstep.errors import bad_value
from fewstep.machine import Machine
from fewstep.models.dispatch import attention_of, attentions
from fewstep.models.grid import Grid
from fewstep.models.hooks import Hook, Hooks
from fewstep.models.model import Model
from fewstep.models.passes import Kept, Rows
from fewstep.models.sparse import NotSparse, Sparse
from fewstep.models.streams import block_lists
from fewstep.techniques.base import Engaged, Stage, Technique
from fewstep.techniques.cache.activity import Activity, begun, forecast, largest, learned, owed
from fewstep.techniques.cache.agree import agreed, group_of, of_first
from fewstep.techniques.cache.masks import as_mask, covered

DENSE, SOME = "#", "o"  # one sign a step in `facts["last_request"]`
MB = 2**20
BUCKETS = 16  # a mask's region is rounded up to a multiple of one in so many of all tokens: few shapes to compile for


@dataclass(frozen=True)
class Regions(Technique):
    """Compute the tokens that move, and forecast those that stand still.

    Attributes:
        share: of the tokens, those that are computed at a step that does not compute all, in (0, 1); with a mask, what
            it covers.
        refresh: every so many-th step computes all, ≥ 2. The first two and the last one always do.
        warmup: the part of the noise levels, from the highest down, at which everything is computed, in [0, 1).
        limit: the relative error of the forecasts, measured at each step that computes all, past which the rest of a
            request computes all; None: nothing is measured.
    """

    name: ClassVar[str] = "regions"
    stage: ClassVar[Stage] = Stage.CACHE
    claims: ClassVar[frozenset[str]] = frozenset({"denoiser.forward", "block.tokens"})

    share: float = 0.25
    refresh: int = 5
    warmup: float = 0.1
    limit: float | None = None

    def faults(self) -> list[str]:
        rules = {
            "share": (_number(self.share) and 0 < self.share < 1, "in (0, 1)"),
            "refresh": (type(self.refresh) is int and self.refresh >= 2, "a whole number, at least 2"),
            "warmup": (_number(self.warmup) and 0 <= self.warmup < 1, "in [0, 1)"),
            "limit": (self.limit is None or (_number(self.limit) and self.limit > 0), "a number above 0"),
        }
        return [bad_value(name, "Regions", rule, getattr(self, name)) for name, (ok, rule) in rules.items() if not ok]

    def problems(self, model: Model, machine: Machine) -> list[str]:
        return [problem for name, module in model.denoisers.items() for problem in _unfit(model, name, module)]

    def apply(self, model: Model, machine: Machine) -> Engaged:
        watch = RegionWatch(self, model).install()
        return Engaged(
            self.name,
            watch.facts,
            watch.remove,
            before_call=watch.before_call,
            reset=watch.forget,
            warnings=watch.warnings,
        )


def _unfit(model: Model, name: str, module: nn.Module) -> list[str]:
    kind = type(module).__name__
    parts = [part for block in model.blocks(name) for _, part in attentions(block.module)]
    if not parts:
        return [f"Regions found no repeated blocks that attend in the {name} ({kind})."]
    if strange := {type(part.processor).__name__ for part in parts if attention_of(part) is None}:
        names = ", ".join(sorted(strange))
        return [f"Regions does not know how {names} attends, in the {name} ({kind})."]
    if any(getattr(part.processor, "_parallel_config", None) is not None for part in parts):
        return [f"Regions does not run on a {name} whose tokens are spread over devices."]
    return []


@dataclass
class Memory:
    """What one guidance branch of one request keeps."""

    kept: Kept = field(default_factory=dict)
    grid: Grid | None = None
    known: Activity | None = None
    seen: int = 0  # steps computed so far, in full or in part
    since: int = 0  # of these, those since the last full one
    highest: float = math.nan  # the noise level of the first step
    stopped: bool = False  # a forecast missed by more than the limit
    masked: tuple[Tensor, int] | None = None  # the tokens under the mask, (tokens,), and how many to compute
    times: Tensor | None = None  # how often each token was computed in a regional step, (batch or 1, tokens)

    @property
    def nbytes(self) -> int:
        """What the keys, the values and the predictions of its tokens take."""
        known = () if self.known is None else (self.known.last, self.known.before)
        return sum(tensor.nbytes for tensor in (*(part for pair in self.kept.values() for part in pair), *known))


class RegionWatch:
    """Hooks on a pipeline's denoisers that choose, call by call, which tokens to compute."""

    def __init__(self, regions: Regions, model: Model) -> None:
        self._regions = regions
        self._requests: Requests[Memory] = Requests(model.pipe, Memory)
        self._sparse = {name: Sparse(block_lists(model, name)) for name in model.denoisers}
        self._groups = {name: group_of(module) for name, module in model.denoisers.items()}
        self._mask: Tensor | None = None  # (height, width), 1 where the region is
        self._aspect: float | None = None  # of the call's picture, height to width
        self._refused: dict[str, str] = {}
        self._checked: set[str] = set()
        self._memories: dict[str, Memory] = {}  # of the branches of the last request
        self.facts: dict[str, Any] = {"share": regions.share, "steps_dense": 0, "steps_regional": 0}
        self.facts.update(last_request={}, computed={}, kept_mb={}, measured={}, stopped=False, grid=[])
        self._hooks = Hooks(
            Hook(module, partial(self._call, name, module, inspect.signature(module.forward)))
            for name, module in model.denoisers.items()
        )

    def install(self) -> RegionWatch:
        for sparse in self._sparse.values():
            sparse.install()
        self._hooks.install()
        return self

    def remove(self) -> None:
        self._hooks.remove()
        for sparse in self._sparse.values():
            sparse.remove()
        self.forget()

    def forget(self) -> None:
        self._requests.forget()

    def before_call(self, call: Mapping[str, Any]) -> None:
        self.facts.update(last_request={}, computed={}, kept_mb={}, measured={}, stopped=False)
        self._memories = {}
        given = call.get("mask_image")
        self._mask = None if given is None else as_mask(given)
        if self._mask is not None:
            height, width = self._mask.shape
            self._aspect = (call.get("height") or height) / (call.get("width") or width)

    def warnings(self) -> list[str]:
        for branch, memory in self._memories.items():  # told here, so that a request waits for no device
            if memory.times is not None and memory.grid is not None:
                self.facts["computed"][branch] = [round(x, 3) for x in memory.times.mean(0).tolist()]
                self.facts["grid"] = list(memory.grid.shape)
                self.facts["kept_mb"][branch] = round(memory.nbytes / MB, 3)
        self._memories = {}  # they hold keys and values
        if self._refused:
            return [f"Regions computed everything in the {name}: {why}" for name, why in self._refused.items()]
        if not any(SOME in signs for signs in self.facts["last_request"].values()):
            return ["Regions computed all of every step: more steps, or a smaller 'warmup', would leave some to spare."]
        return []

    def _call(
        self,
        name: str,
        module: nn.Module,
        signature: inspect.Signature,
        forward: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        run = partial(forward, *args, **kwargs)
        if name in self._refused or measuring():
            return run()
        place = self._requests.place(name, signature.bind_partial(*args, **kwargs).arguments)
        step, memory = place.step, place.branch.state
        rows = self._rows(name, memory, step)
        try:
            output = self._sparse[name].run(run, memory.kept, rows)
            prediction = first_of(output)
            if not isinstance(prediction, Tensor):
                raise NotSparse(f"A {type(module).__name__} returns no tensor.")
            memory.grid = memory.grid or self._grid(name, module, prediction)
        except NotSparse as error:
            self._refused[name] = str(error)
            return run()
        branch = f"{name} branch {place.number}"
        if rows is None and memory.since and self._regions.limit is not None:
            self._measure(name, branch, memory, step, prediction)
        self._note(branch, memory, rows)
        return with_first(output, self._learn(memory, step, prediction, rows))

    def _grid(self, name: str, module: nn.Module, prediction: Tensor) -> Grid:
        grid, tokens = Grid.of(module, prediction), self._sparse[name].tokens
        if name not in self._checked and grid.tokens != tokens:
            raise NotSparse(f"Its blocks have {tokens} tokens and its prediction {grid.tokens}.")
        self._checked.add(name)
        return grid

    def _rows(self, name: str, memory: Memory, step: Step) -> Rows | None:
        """What to compute at this step; None: everything."""
        if memory.seen == 0:
            memory.highest = step.sigma
        warm = step.sigma > memory.highest * (1 - self._regions.warmup)
        due = memory.since + 1 >= self._regions.refresh
        early = memory.seen < 2 or warm or memory.known is None or memory.grid is None
        if step.at_an_end or early or due or memory.stopped:
            return None
        assert memory.known is not None
        assert memory.grid is not None
        owing = owed(memory.known, step.sigma, memory.grid)
        if self._sparse[name].alike:
            owing = owing.amax(0, keepdim=True)
        count = math.ceil(self._regions.share * memory.grid.tokens)
        if self._mask is not None:
            if memory.masked is None:
                inside = covered(self._mask, memory.grid, self._aspect or 1.0)
                memory.masked = inside.to(owing.device), in_buckets(int(inside.sum()), memory.grid.tokens)
            inside, count = memory.masked
            owing = torch.where(inside, owing + owing.max() + 1, owing)
        return Rows(of_first(largest(owing, count), self._groups[name]), memory.grid.tokens)

    def _learn(self, memory: Memory, step: Step, prediction: Tensor, rows: Rows | None) -> Tensor:
        """The prediction, with forecasts for the tokens that were not computed."""
        assert memory.grid is not None
        tokens, computed = memory.grid.split(prediction), None
        if memory.known is None:
            memory.known = begun(tokens, step.sigma)
            return prediction
        if rows is not None:
            computed = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
            computed.scatter_(1, rows.active.expand(len(computed), -1), True)
            tokens = torch.where(computed[..., None], tokens, forecast(memory.known, step.sigma))
        memory.known = learned(memory.known, tokens, computed, step.sigma)
        return prediction if rows is None else memory.grid.join(tokens)

    def _measure(self, name: str, branch: str, memory: Memory, step: Step, prediction: Tensor) -> None:
        """What the forecasts would have missed by at a step that computes all."""
        assert memory.known is not None
        assert memory.grid is not None
        assert self._regions.limit is not None
        error = relative_change(forecast(memory.known, step.sigma), memory.grid.split(prediction))
        self.facts["measured"].setdefault(branch, []).append([step.index, error])
        missed = agreed(not error <= self._regions.limit, self._groups[name])
        memory.stopped = memory.stopped or missed
        self.facts["stopped"] = self.facts["stopped"] or memory.stopped

    def _note(self, branch: str, memory: Memory, rows: Rows | None) -> None:
        assert memory.grid is not None
        memory.seen, memory.since = memory.seen + 1, 0 if rows is None else memory.since + 1
        self.facts["steps_dense" if rows is None else "steps_regional"] += 1
        told = self.facts["last_request"]
        told[branch] = told.get(branch, "") + (DENSE if rows is None else SOME)
        if rows is not None:
            if memory.times is None:
                memory.times = torch.zeros(len(rows.active), rows.tokens, device=rows.active.device)
            memory.times.scatter_add_(1, rows.active, torch.ones_like(rows.active, dtype=memory.times.dtype))
        self._memories[branch] = memory


def in_buckets(count: int, tokens: int) -> int:
    """The next of `BUCKETS` sizes."""
    size = math.ceil(tokens / BUCKETS)
    return min(math.ceil(count / size) * size, tokens)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
