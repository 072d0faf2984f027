"""Prompts of a small vocabulary: one token a word, and how well it is told what a word is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"  # tokens 0, 1 and 2

Tokens = NDArray[np.int16]


def word_tokenizer(vocabulary: list[str], length: int) -> PreTrainedTokenizerFast:
    """Words of the vocabulary, lower case, punctuation apart, `END` appended; at most `length` tokens a prompt."""
    words = [PAD, END, UNKNOWN, *vocabulary]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=length,
    )


def as_tokens(tokenizer: Any, texts: list[str], length: int) -> Tokens:
    """Token ids, shape (texts, length), padded as diffusers' pipelines pad them."""
    ids = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="np")
    return np.asarray(ids.input_ids, dtype=np.int16)


def misread(told: Tensor, right: Tensor, questions: Sequence[int]) -> Tensor:
    """Cross-entropy of the answers to several questions about every word: the sum over the questions.

    Args:
        told: logits of all answers side by side, shape (..., sum(questions)).
        right: the index of each right one, shape (..., len(questions)).
        questions: how many answers each question has.
    """
    parts = zip(torch.split(told, list(questions), -1), right.unbind(-1), strict=True)
    return sum((F.cross_entropy(t.flatten(0, -2), r.flatten()) for t, r in parts), told.new_zeros(()))
