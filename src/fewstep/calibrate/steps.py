"""Where in a request a denoiser call stands: which step, how noisy, and which guidance branch.

Nothing here counts calls to tell guidance branches apart: a pipeline may call its denoiser once, twice or five times a
step, and change that half-way. The step comes from the scheduler, the branch from the conditioning that the call
carries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

State = TypeVar("State")

# What a denoiser is given anew at each step, under the names that diffusers uses; all else stays the same in one
# branch.
EVERY_STEP = frozenset({"hidden_states", "sample", "latents", "x", "timestep", "timesteps", "t", "sigma", "r_timestep"})

TIME_NAMES = ("timestep", "timesteps", "t", "sigma")


def timestep_of(given: Mapping[str, Any]) -> Any:
    """The time among the arguments of a denoiser call; 0 where it is given none."""
    return next((given[name] for name in TIME_NAMES if name in given), 0.0)


@dataclass(frozen=True)
class Step:
    """One step of a request: `index` of `total`, at noise level `sigma` (nan where the scheduler does not tell)."""

    index: int
    total: int
    sigma: float

    @property
    def at_an_end(self) -> bool:
        """The first or the last step."""
        return self.index == 0 or self.index >= self.total - 1


class Clock:
    """Reads the step of a request off the pipeline's scheduler, and notices when a new request begins."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.forget()

    def forget(self) -> None:
        """The next call begins a new request."""
        self._timesteps: Tensor | None = None
        self._seen: Tensor | float | None = None
        self._index = -1
        self.began = False

    def read(self, timestep: Tensor | float) -> Step:
        """The step that a denoiser call with this `timestep` argument belongs to; `began` then tells whether it is the
        first call of a request."""
        scheduler = self._pipe.scheduler
        index = getattr(scheduler, "step_index", None)
        if index is None:
            index = self._counted(scheduler, timestep)
        # Schedulers make new timesteps for each request.
        self.began = scheduler.timesteps is not self._timesteps or index < self._index
        self._timesteps, self._index = scheduler.timesteps, index
        return Step(index, len(scheduler.timesteps), sigma_at(scheduler, index))

    def _counted(self, scheduler: Any, timestep: Tensor | float) -> int:
        """The step of a scheduler that keeps no index, or has not stepped yet: one more for each new timestep."""
        if scheduler.timesteps is not self._timesteps:
            self._seen = None
        begin = getattr(scheduler, "begin_index", None) or 0
        if self._seen is None:
            self._seen = timestep
            return begin
        if same(self._seen, timestep):
            return self._index
        self._seen = timestep
        return self._index + 1


def sigma_at(scheduler: Any, index: int) -> float:
    """The noise level of a step: the scheduler's sigma, or that of its alphas_cumprod; nan when it has neither."""
    if (sigmas := getattr(scheduler, "sigmas", None)) is not None and len(sigmas) > index:
        sigma = float(sigmas[index])
        return 1 - sigma if scheduler.config.get("invert_sigmas") else sigma  # Mochi counts up, from noise to data
    if (alphas := getattr(scheduler, "alphas_cumprod", None)) is not None:
        alpha = float(alphas[int(scheduler.timesteps[index])])
        return ((1 - alpha) / alpha) ** 0.5 if alpha else math.inf  # schedules of zero terminal SNR begin there
    return float("nan")


@dataclass
class Branch(Generic[State]):
    """One guidance branch of a request: the conditioning it is known by, and whatever is kept for it."""

    conditioning: Mapping[str, Any]
    state: State
    step: int = field(default=-1)  # of its last call
    output: Any = None  # what its last computed call returned, where whole calls are skipped


class Branches(Generic[State]):
    """The guidance branches of one denoiser in one request, told apart by their conditioning."""

    def __init__(self) -> None:
        self._known: list[Branch[State]] = []

    @property
    def all(self) -> list[Branch[State]]:
        return list(self._known)

    def find(self, inputs: Mapping[str, Any], step: int, new: Callable[[], State]) -> Branch[State]:
        """The branch that a call with these keyword arguments at this step belongs to; a new one, with the state that
        `new` makes, where no branch fits.

        The very same tensors go before equal ones, so that a negative prompt equal to the prompt stays apart. A branch
        has one call a step: a second one with equal inputs is another branch.
        """
        conditioning = {name: value for name, value in inputs.items() if name not in EVERY_STEP}
        free = [branch for branch in self._known if branch.step != step]
        for matches in (identical, same):
            for branch in free:
                if matches(branch.conditioning, conditioning):
                    branch.step = step
                    return branch
        branch = Branch(conditioning, new(), step)
        self._known.append(branch)
        return branch

    def __len__(self) -> int:
        return len(self._known)

    @property
    def first(self) -> Branch[State]:
        """The branch that was called first."""
        return self._known[0]

    def index(self, branch: Branch[State]) -> int:
        """The place of a branch in the order of their first calls."""
        return next(i for i, known in enumerate(self._known) if known is branch)


@dataclass(frozen=True)
class Place(Generic[State]):
    """A denoiser call's step and guidance branch, with the `number` of that; `first` is the request's first branch."""

    step: Step
    number: int
    branch: Branch[State]
    first: Branch[State]


class Requests(Generic[State]):
    """The guidance branches of all denoisers of a pipeline, which are forgotten when a new request begins."""

    def __init__(self, pipe: Any, new: Callable[[], State]) -> None:
        self._clock, self._new = Clock(pipe), new
        self._branches: dict[str, Branches[State]] = {}

    def place(self, denoiser: str, given: Mapping[str, Any]) -> Place[State]:
        """Where a denoiser call with these arguments belongs."""
        step = self._clock.read(timestep_of(given))
        if self._clock.began:
            self._branches = {}
        branches = self._branches.setdefault(denoiser, Branches())
        branch = branches.find(given, step.index, self._new)
        return Place(step, branches.index(branch), branch, branches.first)

    def branches(self, denoiser: str) -> list[Branch[State]]:
        """Those of the request so far, in the order of their first calls."""
        return self._branches[denoiser].all if denoiser in self._branches else []

    def forget(self) -> None:
        """The next call begins a request."""
        self._clock.forget()
        self._branches = {}


def identical(a: Any, b: Any) -> bool:
    """The same objects where there are tensors, equal values elsewhere."""
    return _alike(a, b, lambda x, y: x is y)


def same(a: Any, b: Any) -> bool:
    """Equal, tensors by shape, dtype and value."""
    return _alike(a, b, lambda x, y: x is y or (x.shape == y.shape and x.dtype == y.dtype and torch.equal(x, y)))


def _alike(a: Any, b: Any, tensors_alike: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return bool(tensors_alike(a, b))
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key], tensors_alike) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_alike(x, y, tensors_alike) for x, y in zip(a, b, strict=True))
    return bool(a is b or a == b)
