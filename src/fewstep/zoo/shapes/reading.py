"""What every word of a prompt is about: the target for teaching the text encoders to read before anything is drawn.

Trained by the pictures alone, small text encoders only count words: "a red ring left of a blue square" and "a blue
ring right of a red square" come out alike (docs/log.md). Large pipelines bring encoders that can read already.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.zoo.shapes.pipeline import PROMPT_TOKENS
from fewstep.zoo.shapes.scenes import (
    COLOURS,
    FILLS,
    NUMBERS,
    RELATIONS,
    SHAPE_WORDS,
    SHAPES,
    SIZES,
    TEXTURES,
    TONES,
    Ask,
    Relation,
    plural,
)

# What is told of every word, each with its answers: of the object that it is about, then of the whole picture.
ANSWERS: tuple[tuple[object, ...], ...] = (
    SHAPES,
    tuple(COLOURS),
    (None, *SIZES),
    (None, *FILLS),
    (None, *RELATIONS),  # how it stands to the other object
    (1, *NUMBERS),
    (None, *TONES),
    (None, *TEXTURES),
)
QUESTIONS = tuple(map(len, ANSWERS))
COLUMNS = sum(QUESTIONS)

_TURNED: dict[Relation, Relation] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
_NOUNS = {form for words in SHAPE_WORDS.values() for word in words for form in (word, plural(word))}


def reading(words: list[str], ask: Ask) -> NDArray[np.int8]:
    """The index of the right answer in each of `ANSWERS`, for each word and the padding; (PROMPT_TOKENS, 8).

    Words up to the first shape's name are about the first object, those up to the second's about the second; all that
    follow are about the last.
    """
    rows, thing = [], 0
    for word in words:
        rows.append(_row(ask, thing))
        thing = min(thing + (word in _NOUNS), len(ask.things) - 1)
    rows += [_row(ask, thing)] * (PROMPT_TOKENS - len(rows))
    return np.asarray(rows[:PROMPT_TOKENS], dtype=np.int8)


def _row(ask: Ask, thing: int) -> list[int]:
    own = ask.things[thing]
    stands = _TURNED[ask.relation] if ask.relation and thing else ask.relation
    told: tuple[Any, ...] = (own.shape, own.colour, own.size, own.fill, stands, len(ask.things), ask.tone, ask.texture)
    return [options.index(answer) for options, answer in zip(ANSWERS, told, strict=True)]
