"""What is told of a prompt's words, and that the UMT5 of `moving-shapes` can learn it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fewstep.zoo.moving.pipeline import PROMPT_TOKENS, build_text_encoder, build_tokenizer
from fewstep.zoo.moving.reading import ANSWERS, COLUMNS, QUESTIONS, reading
from fewstep.zoo.moving.scenes import Ask, ThingAsk, sample_prompt
from fewstep.zoo.words import as_tokens, misread


def told(words, ask):
    return [tuple(a[i] for a, i in zip(ANSWERS, row, strict=True)) for row in reading(words, ask)]


def test_words_are_about_the_object_on_their_side_of_the_joiner() -> None:
    ask = Ask((ThingAsk("ring", "red", "left", "fast"), ThingAsk("square", "blue", "up")))
    words = ["a", "red", "hoop", "races", "left", "while", "a", "blue", "box", "goes", "up"]
    first, second = ("ring", "red", "left", "fast", 2), ("square", "blue", "up", None, 2)
    assert told(words, ask) == [first] * 5 + [second] * (PROMPT_TOKENS - 5)


def test_every_prompt_can_be_told() -> None:
    tokenizer, rng = build_tokenizer(), np.random.default_rng(0)
    for _ in range(100):
        text, ask = sample_prompt(rng)
        rows = told(tokenizer.tokenize(text), ask)
        assert rows[0][:4] == (ask.things[0].shape, ask.things[0].colour, ask.things[0].direction, ask.things[0].speed)
        assert rows[-1][1] == ask.things[-1].colour


def test_the_text_encoder_learns_which_object_a_word_is_about() -> None:
    torch.manual_seed(0)
    tokenizer, rng = build_tokenizer(), np.random.default_rng(1)
    encoder = build_text_encoder(len(tokenizer))
    head = nn.Linear(encoder.config.d_model, COLUMNS)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=2e-3)
    losses = []
    for _ in range(60):
        asked = [sample_prompt(rng) for _ in range(32)]
        ids = torch.from_numpy(as_tokens(tokenizer, [text for text, _ in asked], PROMPT_TOKENS)).long()
        right = torch.from_numpy(np.stack([reading(tokenizer.tokenize(text), ask) for text, ask in asked])).long()
        loss = misread(head(encoder(ids, (ids != 0).long())[0]), right, QUESTIONS)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    chance = sum(np.log(len(options)) for options in ANSWERS)
    assert losses[0] > 0.8 * chance
    assert np.mean(losses[-5:]) < 0.35 * chance
