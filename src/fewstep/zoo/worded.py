"""Scenes that are drawn from seeds, as arrays: the tokens of their prompts, what each word is about, what each token of
the sample shows. Scene `i` is `sample(default_rng(i))`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.zoo.arrays import chunk, made_in_parallel
from fewstep.zoo.words import Tokens, as_tokens

WORDINGS = 4  # prompts kept for every scene

Layouts = NDArray[np.float16]
Readings = NDArray[np.int8]


@dataclass(frozen=True)
class Worded:
    """A task's scenes. All fields are functions and numbers of its own modules, so that processes can share them.

    Attributes:
        sample: a scene from a generator.
        describe: a scene and a generator -> a prompt for it, and what that asks for.
        tokenizer: makes it.
        length: tokens of a prompt.
        reading: the words of a prompt and what it asks for -> what every word is about, (length, answers).
        answers: how many questions a reading answers.
        layout: a scene -> what every token of the sample shows, (tokens, columns).
        shape: of a layout.
    """

    sample: Callable[[np.random.Generator], Any]
    describe: Callable[[Any, np.random.Generator], tuple[str, Any]]
    tokenizer: Callable[[], Any]
    length: int
    reading: Callable[[list[str], Any], Any]
    answers: int
    layout: Callable[[Any], NDArray[Any]]
    shape: tuple[int, int]

    def prompts(self, out: Path, scenes: int) -> Tokens:
        """Token ids of `WORDINGS` prompts for every scene, (scenes, WORDINGS, length), kept in the folder `out`."""
        return made_in_parallel(out / "tokens.npy", self._word, scenes, (WORDINGS, self.length), np.int16)

    def readings(self, out: Path, scenes: int) -> Readings:
        """What every word of those prompts is about, (scenes, WORDINGS, length, answers)."""
        shape = (WORDINGS, self.length, self.answers)
        return made_in_parallel(out / "readings.npy", self._read, scenes, shape, np.int8)

    def layouts(self, out: Path, scenes: int) -> Layouts:
        """What every token of the sample shows, (scenes, tokens, columns)."""
        return made_in_parallel(out / "layouts.npy", self._lay_out, scenes, self.shape, np.float16)

    def scene(self, seed: int) -> Any:
        return self.sample(np.random.default_rng(seed))

    def _word(self, start: int, scenes: int) -> Tokens:
        texts = [text for text, _ in self._described(start, scenes)]
        return as_tokens(self.tokenizer(), texts, self.length).reshape(-1, WORDINGS, self.length)

    def _read(self, start: int, scenes: int) -> Readings:
        tokenizer = self.tokenizer()
        read = [self.reading(tokenizer.tokenize(text), ask) for text, ask in self._described(start, scenes)]
        return np.asarray(read).reshape(-1, WORDINGS, self.length, self.answers)

    def _lay_out(self, start: int, scenes: int) -> Layouts:
        return np.asarray([self.layout(self.scene(seed)) for seed in chunk(start, scenes)], dtype=np.float16)

    def _described(self, start: int, scenes: int) -> Iterator[tuple[str, Any]]:
        """The `WORDINGS` prompts of each scene and what they ask for."""
        for seed in chunk(start, scenes):
            scene = self.scene(seed)
            yield from (self.describe(scene, np.random.default_rng((seed, wording))) for wording in range(WORDINGS))
