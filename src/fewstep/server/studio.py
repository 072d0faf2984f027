"""The live part of a server: opens sessions of one causal student, and runs its teacher beside them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.checkpoints.load import load
from fewstep.errors import InputError
from fewstep.machine import Machine, compute_with
from fewstep.models.load import SMALL_DECODER, resolve
from fewstep.realtime import LiveModel, Session
from fewstep.realtime.told import Chunk
from fewstep.realtime.tricks import tricks_of
from fewstep.server.config import ModelEntry
from fewstep.server.live import Busy, Figures
from fewstep.techniques import Parallel, Technique

EXAMPLES, SEED = 6, 5  # prompts that are offered, of those that the zoo's task draws
VIEWERS = 8  # at once, where nothing else is said
JUDGED = 2.0  # seconds between two looks of the oracle
PIECES = 8  # of what it saw, that count
HELP = {
    "precision": "Weights and products in bfloat16.",
    "compile": "The blocks of the denoiser are compiled.",
}

Judge = Callable[[NDArray[np.uint8]], bool]


@dataclass(eq=False)
class LiveStudio:
    """A `Studio` over one model.

    Attributes:
        entry: the model as the server's configuration names it.
        techniques: those of the model.
        shared: gives the model, loaded and warm, or raises why there is none; it may take its time.
        most: viewers at once.
    """

    entry: ModelEntry
    techniques: tuple[Technique, ...]
    shared: Callable[[], LiveModel]
    most: int = VIEWERS
    _taken: set[object] = field(default_factory=set)
    _places: Any = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        return self.entry.name

    @cached_property
    def examples(self) -> tuple[str, ...]:
        """Prompts of the zoo's task, where the model is of one."""
        return tuple(self._asks)[:EXAMPLES]

    @cached_property
    def tricks(self) -> Mapping[str, str]:
        # Told before the model is loaded; its sessions have the decoder where its folder has one (`decoder_beside`).
        small = (Path(resolve(self.entry.model)) / SMALL_DECODER).is_dir()
        own = tricks_of(small, parts=not any(isinstance(one, Parallel) for one in self.techniques))
        return {**own, **{one.name: HELP.get(one.name) or _says(one) for one in self.techniques}}

    def open(self, prompt: str, *, seed: int | None) -> LiveSession:
        place = object()
        with self._places:
            if len(self._taken) >= self.most:
                raise Busy(f"There are {self.most} viewers already; try again in a while.")
            self._taken.add(place)  # before the session is open, which takes a while
        try:
            session = Session(self.shared(), prompt, fps=self.entry.fps, seed=seed)
        except BaseException:
            self._taken.discard(place)
            raise
        return LiveSession(session, self._judge, lambda: self._taken.discard(place))

    def teacher(self, prompt: str, *, seed: int | None) -> Iterator[Chunk] | None:
        return None if self._teacher is None else self._clips(prompt, seed or 0)

    @cached_property
    def _teacher(self) -> Any:
        """The pipeline of the student's teacher, where it is a zoo model; None otherwise."""
        from fewstep.zoo.registry import NAMES

        name = self.shared().manifest.teacher
        if name not in NAMES:
            return None
        pipe = load(f"zoo:{name}").to(Machine.detect().device)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _clips(self, prompt: str, seed: int) -> Iterator[Chunk]:
        """One clip after the other, each from noise of its own."""
        import torch

        compute_with(1)  # it shares the machine with the sessions
        shown = 0
        for number in count():
            generator = torch.Generator("cpu").manual_seed(seed + number)
            clip = np.asarray(self._teacher(prompt, generator=generator, output_type="np").frames[0])
            frames = np.asarray((clip.clip(0, 1) * 255).round(), np.uint8)
            steps = int(self._teacher.scheduler.timesteps.shape[0])
            yield Chunk(frames, shown, prompt, shown / self.entry.fps, {"steps": steps})
            shown += len(frames)

    @cached_property
    def _asks(self) -> dict[str, Any]:
        """Prompts whose answers the zoo's oracle can judge, and what they ask for."""
        from fewstep.zoo.tasks import task_of

        try:
            task = task_of(self.entry.name.removeprefix("zoo:"))
        except InputError:
            return {}
        return {text: ask for text, ask in task.prompts(4 * EXAMPLES, SEED) if task.single(ask)}

    def _judge(self, prompt: str) -> Judge | None:
        """Whether 17 frames show what a prompt asks for; None where nobody can tell."""
        from fewstep.zoo.moving.oracle import read, still_answers

        ask = self._asks.get(prompt)
        return None if ask is None else lambda frames: still_answers(ask, read(frames.astype(np.float32) / 255))


class LiveSession:
    """A `Live` over a session, which watches what it shows."""

    def __init__(self, session: Session, judge: Callable[[str], Judge | None], closed: Callable[[], None]) -> None:
        from fewstep.zoo.moving.scenes import FRAMES

        self._session, self._judge, self._closed = session, judge, closed
        self._seen: deque[NDArray[np.uint8]] = deque(maxlen=FRAMES)
        self._right: deque[bool] = deque(maxlen=PIECES)
        self._shown, self._next = "", 0.0

    @property
    def fps(self) -> float:
        return self._session.fps

    @property
    def tricks(self) -> Mapping[str, bool]:
        return self._session.tricks

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in self._session:
            self._watch(chunk)
            yield chunk

    def prompt(self, text: str) -> None:
        self._session.prompt(text)

    def switch(self, trick: str, on: bool) -> None:
        self._session.switch(trick, on)

    def stats(self) -> Figures:
        right = list(self._right)
        return {**asdict(self._session.stats), "accuracy": float(np.mean(right)) if right else None}

    def close(self) -> None:
        self._session.close()
        self._closed()

    def _watch(self, chunk: Chunk) -> None:
        """Let the oracle judge the newest frames now and then."""
        if chunk.prompt != self._shown:
            self._shown, self._next = chunk.prompt, chunk.due + JUDGED
            self._seen.clear()
            self._right.clear()
        self._seen.extend(chunk.frames)
        judge = self._judge(chunk.prompt)
        if judge is not None and chunk.due >= self._next and len(self._seen) == self._seen.maxlen:
            self._next = chunk.due + JUDGED
            self._right.append(judge(np.stack(self._seen)))


def _says(technique: Technique) -> str:
    """The first line of its documentation."""
    return (type(technique).__doc__ or technique.name).strip().splitlines()[0]
