"""A studio without a model: it draws true clips of the moving-shapes task at the session's clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import InputError
from fewstep.realtime.told import Chunk
from fewstep.server.live import Busy
from fewstep.zoo.moving import scenes
from fewstep.zoo.moving.answering import sample_answer
from fewstep.zoo.moving.render import render
from fewstep.zoo.moving.scenes import Ask, ThingAsk

AHEAD = 0.4  # seconds that a chunk is made before it is due
LENGTH = 160  # frames after which a clip begins anew
TRICKS = {
    "window": "Keys and values of the past are kept, not computed anew for every chunk.",
    "overlap": "A chunk is decoded while the next one is denoised.",
    "int8": "Linear layers multiply whole numbers of 8 bits.",
}
EXAMPLES = (
    "a red ring moving right",
    "a blue square moving down slowly",
    "a fast green triangle moving left and a pink circle moving up",
)


def asked(prompt: str) -> Ask:
    """What a prompt asks for, by its words.

    Raises:
        InputError: it names no shape, colour or direction.
    """
    halves = prompt.replace(" while ", " and ").split(" and ")
    return Ask(tuple(_thing(half.split(), prompt) for half in halves))


def _thing(words: list[str], prompt: str) -> ThingAsk:
    def named(table: dict[str, tuple[str, ...]]) -> str:
        for name, forms in table.items():
            if any(form in words for form in forms):
                return name
        raise InputError(f"Nothing can be drawn for {prompt!r}: say a colour, a shape and a direction.")

    colours = {name: (name,) for name in scenes.COLOURS}
    shape, colour = named(scenes.SHAPE_WORDS), named(colours)
    return ThingAsk(shape, colour, named(scenes.DIRECTION_WORDS))  # type: ignore[arg-type]


def clip(prompt: str, seed: int, scale: int = 1) -> NDArray[np.uint8]:
    scene = sample_answer(asked(prompt), np.random.default_rng(seed))
    drawn = (255 * render(scene, LENGTH).clip(0, 1)).astype(np.uint8)
    return drawn.repeat(scale, axis=1).repeat(scale, axis=2)


@dataclass(eq=False)
class DrawnLive:
    """Chunks of `size` frames; a chunk is made `AHEAD` of its time, and takes `work` seconds."""

    studio: DrawnStudio
    text: str
    seed: int
    fps: float
    size: int = 4
    tricks: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(TRICKS, True))
    made: int = 0

    def __post_init__(self) -> None:
        self._clip, self._closed = clip(self.text, self.seed, self.studio.scale), threading.Event()

    def __iter__(self) -> Iterator[Chunk]:
        began = time.monotonic()
        while not self._closed.is_set():
            due = self.made / self.fps
            self._closed.wait(max(0.0, began + due - AHEAD - time.monotonic()))
            frames, text = self._clip, self.text
            taken = frames[np.arange(self.made, self.made + self.size) % len(frames)]
            if self.made == self.studio.stalls_at:
                self._closed.wait(1.2)
            steps = 4 if self.tricks["int8"] else 2
            if not self._closed.is_set():
                yield Chunk(taken, self.made, text, due, {"steps": steps, "denoise_ms": 21.5, "decode_ms": 4.25})
                self.made += self.size

    def prompt(self, text: str) -> None:
        self._clip = clip(text, self.seed, self.studio.scale)
        self.text = text

    def switch(self, trick: str, on: bool) -> None:
        if trick not in self.tricks:
            raise InputError(f"The 'trick' of a live session must be one of {', '.join(self.tricks)}. Got {trick!r}.")
        self.tricks[trick] = on

    def stats(self) -> dict[str, float | int | str | None]:
        wobble = float(np.random.default_rng(self.made).uniform(0.9, 1.1))
        figures: dict[str, float | int | str | None] = {
            "fps": 38 * wobble,
            "first_frame_s": 0.031,
            "jitter_ms": 3 * wobble,
        }
        return {**figures, "missed": 0, "steps": 4, "accuracy": 0.95, "load": float("nan")}

    def close(self) -> None:
        self._closed.set()
        self.studio.sessions.discard(self)


@dataclass(eq=False)
class DrawnStudio:
    """`most` viewers at once. A pixel is drawn `scale` times as large; `pause` is what a frame of the teacher takes;
    work on the chunk that begins with frame `stalls_at` hangs for 1.2 seconds."""

    fps: float = 16.0
    scale: int = 1
    most: int = 16
    pause: float = 0.05
    has_teacher: bool = True
    stalls_at: int | None = None
    name: str = "drawn shapes"
    examples: tuple[str, ...] = EXAMPLES
    tricks: dict[str, str] = field(default_factory=lambda: dict(TRICKS))
    sessions: set[DrawnLive] = field(default_factory=set)
    opened: int = 0

    def open(self, prompt: str, *, seed: int | None) -> DrawnLive:
        if len(self.sessions) >= self.most:
            raise Busy(f"There are {self.most} viewers already; try again in a while.")
        live = DrawnLive(self, prompt, seed or 0, self.fps)
        self.sessions.add(live)
        self.opened += 1
        return live

    def teacher(self, prompt: str, *, seed: int | None) -> Iterator[Chunk] | None:
        return self._teach(prompt, seed or 0) if self.has_teacher else None

    def _teach(self, prompt: str, seed: int) -> Iterator[Chunk]:
        frames, size = clip(prompt, seed), 17
        for start in range(0, 10**6, size):
            time.sleep(self.pause * size)
            taken = frames[np.arange(start, start + size) % len(frames)]
            yield Chunk(taken, start, prompt, start / self.fps, {"steps": 50, "denoise_ms": 1000 * self.pause * size})
