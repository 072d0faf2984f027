"""The block stacks of a pipeline's denoisers, watched and skipped from outside: no model code is changed.

A denoiser's blocks stand in lists (Flux has two). What one list adds to each stream of tokens, out − in, is its
*residual*. To skip the stack, every block returns its input, and the last one of each list returns the list's own input
plus a residual kept from an earlier step. All else (embeddings, the output head, what the model does between lists)
runs as always.

A part of the stack can be skipped in the same way, the first and last blocks running always; so can attention alone, in
the place of which its output stands; and so can a denoiser as a whole, or in its further guidance branches.

The gates are put on the blocks for the length of one denoiser call, and so stand outermost: whatever a block's forward
has become, compiled or quantized, runs inside them, and the decision to skip is never inside a compiled region.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn

from fewstep.calibrate.signal import Signal
from fewstep.calibrate.steps import Place, Requests, Step
from fewstep.models.dispatch import attentions
from fewstep.models.hooks import Hook, Hooks, wrapped
from fewstep.models.model import Model
from fewstep.models.streams import ALL_BLOCKS, BlockList, Part, Streams, block_lists, pack, takes_apart, unpack

# Block list -> what it added; attention -> its outputs; of a denoiser skipped as a whole WHOLE -> its output.
Kept = Mapping[str, Streams]
WHOLE = "whole"


Way = Callable[["Visit", Place[Any], Callable[[], Any]], Any]


@dataclass
class Visit:
    """One call of a denoiser.

    `x` is its main input; `entered` the hidden stream before the first block, `signal` what that block sees of it,
    `head` what the blocks before the skipped ones added, `residuals` what each block list added in the part that can be
    skipped, `output` the hidden stream after it; `reused` are the residuals that took the place of the blocks, None
    when they ran. Where a denoiser is skipped as a whole there is `x` alone, and `residuals` holds its output.
    """

    denoiser: str
    branch: int
    step: Step
    x: Tensor | None = None
    entered: Tensor | None = None
    signal: tuple[Tensor, ...] | None = None
    head: Tensor | None = None
    inputs: dict[str, Streams] = field(default_factory=dict)
    residuals: dict[str, Streams] = field(default_factory=dict)
    output: Tensor | None = None
    reused: Kept | None = None
    asked: bool = False


class Policy(Protocol):
    """What decides whether blocks run. `state` belongs to one branch of one denoiser in one request."""

    @property
    def wants_signal(self) -> bool:
        """Whether it looks at what the first block sees, which costs the block's norm once more."""

    @property
    def wants_head(self) -> bool:
        """Whether it looks at what the blocks before the skipped ones added."""

    def start(self) -> Any:
        """The state of a new branch."""

    def reuse(self, visit: Visit, state: Any) -> Kept | None:
        """What stands in the place of the part that can be skipped, or None to run it."""

    def computed(self, visit: Visit, state: Any) -> None:
        """The part ran: `visit.residuals` are there."""


class StackWatch:
    """Hooks on every denoiser of a pipeline that ask a policy, call by call, whether a part of it must run."""

    def __init__(self, model: Model, policy: Policy, part: Part = ALL_BLOCKS) -> None:
        self._policy, self._part = policy, part
        self._requests: Requests[Any] = Requests(model.pipe, policy.start)
        self._signals: dict[str, Signal] = {}
        self.unknown: set[str] = set()  # classes of blocks that return what nothing here can take apart: never skipped
        inside = part.scope in ("blocks", "attention")
        lists = {name: block_lists(model, name, part) if inside else [] for name in model.denoisers}
        self._hooks = Hooks(
            Hook(module, partial(self._call, name, self._way(lists[name]), inspect.signature(module.forward)))
            for name, module in model.denoisers.items()
            if not inside or any(one.start < one.stop for one in lists[name])
        )

    def install(self) -> StackWatch:
        self._hooks.install()
        return self

    def remove(self) -> None:
        self._hooks.remove()
        self.forget()

    def forget(self) -> None:
        """Drop everything that belongs to the last request."""
        self._requests.forget()

    def _way(self, lists: list[BlockList]) -> Way:
        """How a call of a denoiser with these block lists goes."""
        ways: dict[str, Way] = {
            "output": self._whole,
            "guidance": self._whole,
            "blocks": partial(self._blocks, lists),
            "attention": partial(self._attention, attentions_of(lists)),
        }
        return ways[self._part.scope]

    def _call(
        self, name: str, way: Way, signature: inspect.Signature, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        given = signature.bind_partial(*args, **kwargs).arguments
        place = self._requests.place(name, given)
        visit = Visit(name, place.number, place.step, next(iter(given.values()), None))
        return way(visit, place, partial(forward, *args, **kwargs))

    def _whole(self, visit: Visit, place: Place[Any], run: Callable[[], Any]) -> Any:
        """The whole call, or, with scope `guidance`, that of a further branch as its difference to the first."""
        branch, state, base = place.branch, place.branch.state, None
        if self._part.scope == "guidance":
            if branch is place.first or place.first.step != visit.step.index:
                output = run()
                branch.output = with_first(output, first_of(output).clone())
                return output
            base = first_of(place.first.output)
        visit.reused = self._policy.reuse(visit, state)
        if visit.reused is not None:
            # Copies, here and below: a pipeline may write into what it was given, a CUDA graph into what it gave.
            kept = visit.reused[WHOLE]["hidden"]
            return with_first(branch.output, kept.clone() if base is None else base + kept)
        branch.output = run()
        output = first_of(branch.output)
        visit.residuals[WHOLE] = {"hidden": output.clone() if base is None else output - base}
        self._policy.computed(visit, state)
        return branch.output

    def _attention(
        self, parts: list[tuple[str, nn.Module]], visit: Visit, place: Place[Any], run: Callable[[], Any]
    ) -> Any:
        with ExitStack() as gates:
            for path, module in parts:
                gates.enter_context(wrapped(module, partial(self._attend, visit, place.branch.state, path)))
            output = run()
        if visit.reused is None and len(visit.residuals) == len(parts):
            self._policy.computed(visit, place.branch.state)
        return output

    def _attend(
        self, visit: Visit, state: Any, path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if not visit.asked:
            visit.reused, visit.asked = self._policy.reuse(visit, state), True
        if visit.reused is not None:
            parts = [tensor.clone() for tensor in visit.reused[path].values()]
            return parts[0] if len(parts) == 1 else tuple(parts)
        output = forward(*args, **kwargs)
        parts = list(output) if isinstance(output, tuple) else [output]
        if (len(parts) == 1 and isinstance(output, tuple)) or not all(isinstance(part, Tensor) for part in parts):
            self.unknown.add(path)
        else:
            visit.residuals[path] = {str(i): part.clone() for i, part in enumerate(parts)}
        return output

    def _blocks(self, lists: list[BlockList], visit: Visit, place: Place[Any], run: Callable[[], Any]) -> Any:
        with ExitStack() as gates:

            def put(one: BlockList, indices: Iterable[int]) -> None:
                for index in indices:
                    gates.enter_context(wrapped(one.modules[index], partial(gate, one, index)))

            def gate(one: BlockList, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
                streams = one.streams(index, args, kwargs)
                if visit.entered is None:
                    self._enter(visit, one.modules[index], streams["hidden"], args, kwargs)
                if not one.start <= index < one.stop:
                    return forward(*args, **kwargs)
                if not visit.asked:
                    self._ask(visit, place.branch.state, streams["hidden"])
                    for other in lists if visit.reused is not None else ():
                        put(other, range(other.start + 1, other.stop - 1))
                return self._pass(visit, one, index, streams, partial(forward, *args, **kwargs))

            # Where all blocks run, those at the ends of what can be skipped are enough.
            for one in lists:
                ends = {one.start, one.stop - 1} if one.start < one.stop else set()
                put(one, sorted(ends | ({0} if one is lists[0] else set())))
            output = run()
        if visit.reused is None and len(visit.residuals) == sum(one.start < one.stop for one in lists):
            self._policy.computed(visit, place.branch.state)
        return output

    def _enter(
        self, visit: Visit, block: nn.Module, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        visit.entered = hidden
        if self._policy.wants_signal:
            visit.signal = self._signal(visit.denoiser, block, args, kwargs)

    def _ask(self, visit: Visit, state: Any, came: Tensor) -> None:
        assert visit.entered is not None
        if self._policy.wants_head and came is not visit.entered and came.shape == visit.entered.shape:
            visit.head = came - visit.entered  # the shape may change between lists
        visit.reused, visit.asked = self._policy.reuse(visit, state), True

    def _pass(self, visit: Visit, one: BlockList, index: int, streams: Streams, run: Callable[[], Any]) -> Any:
        """What a block that can be skipped returns."""
        if index == one.start:
            visit.inputs[one.path] = streams
        last, places = index == one.stop - 1, one.outputs[index]
        if visit.reused is not None:
            return pack(_added(visit.inputs[one.path], visit.reused[one.path]) if last else streams, places)
        output = run()
        if last and not takes_apart(output, places):
            self.unknown.add(type(one.modules[index]).__name__)
        elif last:
            left = unpack(output, places)
            visit.residuals[one.path] = _difference(left, visit.inputs[one.path])
            visit.output = left["hidden"]
        return output

    def _signal(
        self, denoiser: str, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        if denoiser not in self._signals:
            self._signals[denoiser] = Signal.learn(block, args, kwargs)
        return self._signals[denoiser](block, args, kwargs)


def attentions_of(lists: list[BlockList]) -> list[tuple[str, nn.Module]]:
    """The attention modules in the blocks that can be skipped, by their paths."""
    return [
        (f"{one.path}.{index}.{path}", part)
        for one in lists
        for index in range(one.start, one.stop)
        for path, part in attentions(one.modules[index])
    ]


def first_of(output: Any) -> Tensor:
    """The prediction in what a denoiser returned: its first tensor."""
    tensor: Tensor = output if isinstance(output, Tensor) else output[0]
    return tensor


def with_first(output: Any, tensor: Tensor) -> Any:
    """The same with another prediction: a tensor, a tuple, or a model's output of a class of its own."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, tuple):
        return (tensor, *output[1:])
    first, *others = output.items()
    return type(output)(**{first[0]: tensor, **dict(others)})


def _added(streams: Streams, residual: Streams) -> Streams:
    return {name: streams[name] + change for name, change in residual.items()}


def _difference(new: Streams, old: Streams) -> Streams:
    return {name: tensor - old[name] for name, tensor in new.items()}
