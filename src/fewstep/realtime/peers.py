"""A live model on several processes: the first one's sessions are repeated by the others, so that all denoise together.

with joined(), together(LiveModel.of(pipe, [Parallel(ulysses=2)])) as model:
    if model is not None:  # on the first process
        with Session(model, "a red ring moving left") as session: ...
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from fewstep.errors import InputError
from fewstep.realtime.model import LiveModel
from fewstep.realtime.rolling import OnPrompt, Rolling
from fewstep.techniques import Parallel
from fewstep.techniques.parallel.processes import Peers, world


@contextmanager
def together(model: LiveModel) -> Iterator[LiveModel | None]:
    """The model inside the block, on the first process, where its sessions are. The others do what these do until the
    first one leaves the block, and have None then.

    Decoding is the first one's alone, beside the denoising of all.

    Raises:
        InputError: nothing is shared among the processes, or the decoder is.
    """
    rank, size = world()
    if size == 1:
        yield model
        return
    _check(model, size)
    peers = Peers()
    if rank > 0:
        _follow(model, peers)
        yield None
        return
    model.peers = peers
    try:
        yield model
    finally:
        model.peers = None
        peers.end()


def stream(model: LiveModel, prompt: str, seed: int) -> Rolling:
    """A stream of a model's latents, on all of the processes that share it."""
    with model.lock:
        return Rolling(model, prompt, seed) if model.peers is None else Led(model, model.peers, prompt, seed)


class Led(Rolling):
    """A stream on the first process: all others are told what it does next."""

    def __init__(self, model: LiveModel, peers: Peers, prompt: str, seed: int) -> None:
        self._peers, self._number = peers, next(peers.numbers)
        with peers.told("open", self._number, prompt, seed):
            super().__init__(model, prompt, seed)

    def chunk(self, steps: int) -> Tensor:
        with self._peers.told("chunk", self._number, steps, self.cached, self.candidates):
            return super().chunk(steps)

    def turn(self, prompt: str, how: OnPrompt) -> None:
        with self._peers.told("turn", self._number, prompt, how):
            super().turn(prompt, how)

    def close(self) -> None:
        with self.model.lock:
            if not self._peers.lost:
                with self._peers.told("close", self._number):
                    super().close()


def _follow(model: LiveModel, peers: Peers) -> None:
    """Do what the first process says, until it says no more."""
    streams: dict[int, Rolling] = {}
    while (said := peers.hear())[0] is not None:
        match said:
            case "put_on", names:
                model.put_on(names)
            case "open", number, prompt, seed:
                streams[number] = Rolling(model, prompt, seed)
            case "chunk", number, steps, cached, candidates:
                streams[number].cached, streams[number].candidates = cached, candidates
                streams[number].chunk(steps)
            case "turn", number, prompt, how:
                streams[number].turn(prompt, how)
            case "close", number:
                del streams[number]


def _check(model: LiveModel, processes: int) -> None:
    parallel = model.techniques.get(Parallel.name)
    if not isinstance(parallel, Parallel):
        raise InputError(f"{processes} processes have nothing to share: the live model needs the technique 'parallel'.")
    if parallel.auto or parallel.vae > 1:
        raise InputError("A live session decodes on its first process: state the numbers of 'parallel' without 'vae'.")
