"""Tokenizes prompts and the answers that continue them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from transformers import PreTrainedTokenizerBase


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Returns the token ids of each prompt, without special tokens at its end.

    Special tokens at the start (bos) stay. After one at the end (eos), the label word would start a new text. An empty
    prompt has no tokens.
    """
    encoded = tokenizer(list(prompts), return_special_tokens_mask=True, verbose=False)
    result = []
    for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        end = len(ids)
        while end > 0 and special[end - 1]:
            end -= 1
        result.append(ids[:end])
    return result


def encode_continuations(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[Sequence[str]]
) -> list[tuple[list[int], list[list[int]]]]:
    """Returns the token ids of each prompt and, separately, those of each answer as the continuation of its prompt.

    Answers are tokenized together with their prompt. With most tokenizers " great" within a text differs from "great"
    at its start, and sentencepiece adds a space before a text. If the prompt's last token merges with the start of an
    answer, it belongs to the answer, and then to all answers of the prompt.

    Args:
        tokenizer: The model's tokenizer.
        prompts: The prompts.
        answers: The possible continuations of each prompt.

    Returns:
        A pair for each prompt: its token ids, and those of each answer. An answer that adds no token is an empty list.
    """
    flat = [prompt + answer for prompt, own in zip(prompts, answers, strict=True) for answer in own]
    heads, wholes = encode_prompts(tokenizer, prompts), iter(encode_prompts(tokenizer, flat) if flat else [])
    result = []
    for head, own in zip(heads, answers, strict=True):
        full = [next(wholes) for _ in own]
        kept = _num_shared_tokens([head, *full])
        result.append((head[:kept], [ids[kept:] for ids in full]))
    return result


def _num_shared_tokens(texts: Sequence[Sequence[int]]) -> int:
    """Returns the length of the longest common start of all texts, in tokens."""
    aligned = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*texts, strict=False))
    return sum(1 for _ in aligned)
