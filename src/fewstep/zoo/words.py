"""Prompts of a small vocabulary as tokens: one token a word."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
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
