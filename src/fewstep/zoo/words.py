"""Prompts of a small vocabulary: one token a word, and how well it is told what a word is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"  # tokens 0, 1 and 2

Tokens = NDArray[np.int16]
Encoder = TypeVar("Encoder", bound=PreTrainedModel)


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


def small_t5(kind: type[Encoder], vocab_size: int, length: int) -> Encoder:
    """An untrained encoder of prompts, a `T5EncoderModel` or one of its kin, with features of 128 for each token.

    Its attention starts out by looking at places: as T5 begins, all but blind to them, it learns four times slower
    which words belong together, if at all.
    """
    model: Encoder = kind(
        kind.config_class(
            vocab_size=vocab_size,
            d_model=128,
            d_kv=32,
            d_ff=256,
            num_layers=3,
            num_heads=4,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=length,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    for name, module in model.named_modules():
        if name.endswith("relative_attention_bias"):
            nn.init.normal_(module.weight, std=2.0)
    return model


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
