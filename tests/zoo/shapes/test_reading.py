"""What is told of a prompt's words, and that the T5 of `shapes` can learn it where counting words is not enough."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.zoo.shapes.pipeline import PROMPT_TOKENS, build_text_encoder_2, build_tokenizer
from fewstep.zoo.shapes.reading import ANSWERS, COLUMNS, QUESTIONS, reading
from fewstep.zoo.shapes.scenes import Ask, ThingAsk, describe, sample_prompt, sample_scene
from fewstep.zoo.words import as_tokens, misread


def told(words, ask):
    return [tuple(a[i] for a, i in zip(ANSWERS, row, strict=True)) for row in reading(words, ask)]


def test_every_word_is_about_the_object_whose_name_comes_next() -> None:
    things = (ThingAsk("ring", "red", "large"), ThingAsk("square", "blue", fill="striped"))
    ask = Ask(things, "left of", "teal", "wavy")
    words = [
        *["a", "large", "red", "hoop", "to", "the", "left", "of"],
        *["a", "striped", "blue", "box", "on", "a", "wavy", "teal", "background"],
    ]
    first = ("ring", "red", "large", None, "left of", 2, "teal", "wavy")
    second = ("square", "blue", None, "striped", "right of", 2, "teal", "wavy")
    rows = told(words, ask)
    assert rows == [first] * 4 + [second] * (PROMPT_TOKENS - 4)


def test_many_of_a_kind_share_one_answer() -> None:
    ask = Ask((ThingAsk("square", "red"),) * 3)
    assert set(told(["three", "red", "boxes"], ask)) == {("square", "red", None, None, None, 3, None, None)}


def test_every_prompt_can_be_told() -> None:
    tokenizer, rng = build_tokenizer(), np.random.default_rng(0)
    for _ in range(200):
        text, ask = sample_prompt(rng)
        rows = reading(tokenizer.tokenize(text), ask)
        assert rows.shape == (PROMPT_TOKENS, len(ANSWERS))
        assert {tuple(row[:2]) for row in rows} == {
            (ANSWERS[0].index(t.shape), ANSWERS[1].index(t.colour)) for t in ask.things
        }


def test_the_right_answers_cost_nothing_and_wrong_ones_do() -> None:
    right = torch.zeros(2, len(ANSWERS), dtype=torch.long)
    sure = torch.cat([torch.tensor([100.0] + [0.0] * (len(a) - 1)) for a in ANSWERS]).expand(2, COLUMNS)
    assert misread(sure, right, QUESTIONS) == pytest.approx(0, abs=1e-6)
    assert misread(torch.zeros(2, COLUMNS), right, QUESTIONS) == pytest.approx(
        sum(np.log(len(a)) for a in ANSWERS), rel=1e-5
    )
    assert misread(sure, right + 1, QUESTIONS) == pytest.approx(100 * len(ANSWERS), rel=1e-5)


@pytest.mark.slow
def test_the_encoder_learns_which_words_belong_together() -> None:
    """Counting words leaves half of the answers about two objects to chance."""
    torch.manual_seed(0)
    tokenizer, rng = build_tokenizer(), np.random.default_rng(0)
    encoder, head = build_text_encoder_2(len(tokenizer)), nn.Linear(128, COLUMNS)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-3)
    for _ in range(400):
        asked = [describe(sample_scene(rng), rng) for _ in range(64)]
        ids = torch.from_numpy(as_tokens(tokenizer, [text for text, _ in asked], PROMPT_TOKENS)).long()
        right = torch.from_numpy(np.stack([reading(tokenizer.tokenize(text), ask) for text, ask in asked])).long()
        logits = head(encoder(input_ids=ids)[0])
        optimizer.zero_grad()
        torch.autograd.backward(misread(logits, right, QUESTIONS))
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
    two = right[:, 0, 5] == 1
    colour = torch.split(logits, [len(a) for a in ANSWERS], -1)[1].argmax(-1)
    assert (colour == right[..., 1])[two].float().mean() > 0.95
