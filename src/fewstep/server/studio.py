"""The live part of a server: opens sessions of one causal student, and runs its teacher beside them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fewstep.checkpoints.load import load
from fewstep.errors import InputError
from fewstep.machine import Machine, compute_with
from fewstep.models.load import resolve
from fewstep.models.manifest import Manifest
from fewstep.realtime.session import OWN, SMALL, Chunk
from fewstep.server.config import ModelEntry
from fewstep.server.live import Busy, Figures

if TYPE_CHECKING:
    from fewstep.realtime import LiveModel, Session
    from fewstep.techniques import Technique

EXAMPLES, SEED = 6, 5  # prompts that are offered, of those that the zoo's task draws
WARM_UP = 3  # chunks: until nothing is compiled any more
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
        most: viewers at once.
    """

    entry: ModelEntry
    most: int = 8
    _open: set[LiveSession] = field(default_factory=set)
    _loading: Any = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        return self.entry.name

    @cached_property
    def examples(self) -> tuple[str, ...]:
        """Prompts of the zoo's task, where the model is of one."""
        return tuple(self._asks)[:EXAMPLES]

    @cached_property
    def tricks(self) -> Mapping[str, str]:
        own = {name: says for name, says in OWN.items() if name != SMALL}
        return {**own, **{one.name: HELP[one.name] for one in self._techniques}}

    @property
    def model(self) -> LiveModel:
        """Loaded and warm; the first who asks waits for that."""
        with self._loading:
            return self._model

    def open(self, prompt: str, *, seed: int | None) -> LiveSession:
        from fewstep.realtime import Session

        if len(self._open) >= self.most:
            raise Busy(f"There are {self.most} viewers already; try again in a while.")
        session = Session(self.model, prompt, fps=self.entry.fps, seed=seed, on_prompt="cut")
        live = LiveSession(session, self._judge, self._open.discard)
        self._open.add(live)
        return live

    def teacher(self, prompt: str, *, seed: int | None) -> Iterator[Chunk] | None:
        return None if self._teacher is None else self._clips(prompt, seed or 0)

    @cached_property
    def _model(self) -> LiveModel:
        from fewstep.realtime import LiveModel, Session

        pipe = load(self.entry.model).to(Machine.detect().device)
        pipe.set_progress_bar_config(disable=True)
        model = LiveModel.of(pipe, self._techniques)
        with Session(model, self.examples[0] if self.examples else "a", paced=False) as session:
            for _ in zip(range(WARM_UP), session, strict=False):
                pass
        return model

    @cached_property
    def _techniques(self) -> tuple[Technique, ...]:
        from fewstep.techniques import Compile, Precision

        machine = Machine.detect()
        wanted = {"bf16": Precision(), "compile": Compile()}
        return tuple(one for feature, one in wanted.items() if machine.missing(feature) is None)

    @cached_property
    def _teacher(self) -> Any:
        """The pipeline of the student's teacher, where it is a zoo model; None otherwise."""
        from fewstep.zoo.registry import NAMES

        name = self.model.manifest.teacher
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

    def __init__(
        self, session: Session, judge: Callable[[str], Judge | None], closed: Callable[[LiveSession], None]
    ) -> None:
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
        self._closed(self)

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


def live_entry(entries: tuple[ModelEntry, ...]) -> ModelEntry | None:
    """The first model that makes video chunk by chunk, by its manifest; None where there is none."""
    for entry in entries:
        place = resolve(entry.model)
        manifest = Manifest.read(place) if isinstance(place, Path) else None
        if manifest is not None and manifest.causal is not None:
            return entry
    return None
