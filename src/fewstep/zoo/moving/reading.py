"""What every word of a prompt is about: the target for teaching the text encoder to read before anything is drawn.

Why it is taught: see `fewstep.zoo.shapes.reading`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fewstep.zoo.moving.pipeline import PROMPT_TOKENS
from fewstep.zoo.moving.scenes import COLOURS, DIRECTIONS, JOINERS, SHAPES, SPEEDS, Ask

# What is told of every word, each with its answers: of the object that it is about, then of the whole clip.
ANSWERS: tuple[tuple[object, ...], ...] = (SHAPES, tuple(COLOURS), tuple(DIRECTIONS), (None, *SPEEDS), (1, 2))
QUESTIONS = tuple(map(len, ANSWERS))
COLUMNS = sum(QUESTIONS)


def reading(words: list[str], ask: Ask) -> NDArray[np.int8]:
    """The index of the right answer in each of `ANSWERS`, for each word and the padding; (PROMPT_TOKENS, 5).

    Words are about the first object up to the one that joins it to the second.
    """
    rows, thing = [], 0
    for word in words:
        thing += word in JOINERS
        rows.append(_row(ask, thing))
    rows += [_row(ask, thing)] * (PROMPT_TOKENS - len(rows))
    return np.asarray(rows[:PROMPT_TOKENS], dtype=np.int8)


def _row(ask: Ask, thing: int) -> list[int]:
    own = ask.things[thing]
    told = (own.shape, own.colour, own.direction, own.speed, len(ask.things))
    return [options.index(answer) for options, answer in zip(ANSWERS, told, strict=True)]
