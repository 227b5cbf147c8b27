"""Tokenizes prompts and the answers that continue them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from zolit.errors import UserError
from zolit.reason import panics_as_errors, reason

TokenizedQuestions = list[tuple[list[int], list[list[int]]]]
"""For each question, the token ids of the prompt and those of each answer."""

LONGEST = 2**20
"""Characters of the longest text for a model without a limit of tokens."""

_ALWAYS_WHOLE = 2**14
_CHARACTERS_PER_TOKEN = 16


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: str | Sequence[str], **options: Any) -> Any:
    """Calls a tokenizer; texts of any length are allowed.

    Raises:
        UserError: If the tokenizer fails, as one without a token for unknown words.
    """
    try:
        with panics_as_errors():
            return tokenizer(texts, verbose=False, **options)
    except Exception as error:  # the tokenizer of a stranger raises anything
        raise UserError(f"the tokenizer of {tokenizer.name_or_path} cannot read a text: {reason(error)}") from error


def end_of_long_text(tokenizer: PreTrainedTokenizerBase, text: str, limit: int | None) -> str:
    """Returns a text, or only its end if it certainly has more tokens than a model accepts.

    A text of megabytes would take minutes to tokenize. The ends of the text are tokenized therefore, each twice as long
    as the one before, until one has twice as many tokens as the limit. This end begins within a word, but the tokens
    that differ for that reason lie before the last ``limit`` tokens.

    Args:
        tokenizer: The model's tokenizer.
        text: The text. Texts of up to 16 thousand characters are always returned whole.
        limit: Most tokens that the model accepts; None for :data:`LONGEST` characters.
    """
    return _part_of_long_text(tokenizer, text, limit, lambda size: text[-size:])


def start_of_long_text(tokenizer: PreTrainedTokenizerBase, text: str, limit: int | None) -> str:
    """Returns a text, or only its start if it certainly has too many tokens; see ``end_of_long_text``."""
    return _part_of_long_text(tokenizer, text, limit, lambda size: text[:size])


def _part_of_long_text(
    tokenizer: PreTrainedTokenizerBase, text: str, limit: int | None, part: Callable[[int], str]
) -> str:
    """Returns a text, or the smallest part that certainly has more tokens than a model accepts.

    Args:
        tokenizer: See ``end_of_long_text``.
        text: See ``end_of_long_text``.
        limit: See ``end_of_long_text``.
        part: Returns the part of the text with a number of characters.
    """
    if limit is None:
        return part(LONGEST)
    size = max(_ALWAYS_WHOLE, _CHARACTERS_PER_TOKEN * limit)
    while size < len(text):
        found = part(size)
        if len(tokenize(tokenizer, found, add_special_tokens=False)["input_ids"]) > 2 * limit:
            return found
        size *= 2
    return text


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Returns the token ids of each prompt, without special tokens at its end.

    Special tokens at the start (bos) stay. After one at the end (eos), the label word would start a new text. An empty
    prompt has no tokens.
    """
    encoded = tokenize(tokenizer, list(prompts), return_special_tokens_mask=True)
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


def check_answers(
    tokenizer: PreTrainedTokenizerBase, place: str, answers: Sequence[str], tokens: Sequence[Sequence[int]]
) -> None:
    """Refuses answers that the model cannot tell apart or cannot write.

    Args:
        tokenizer: The model's tokenizer.
        place: The record or the option, for the message.
        answers: The answers of a question.
        tokens: The token ids of each answer.

    Raises:
        UserError: If two different answers have the same tokens, as two cases of a word have in a vocabulary without
            capitals, or an answer has the token for unknown words or another special token.
    """
    named = ("bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id")
    special = {getattr(tokenizer, name) for name in named}
    unknown = {tokenizer.unk_token_id} - special - {None}
    seen: dict[tuple[int, ...], str] = {}
    for answer, ids in zip(answers, map(tuple, tokens), strict=True):
        if seen.setdefault(ids, answer) != answer:
            raise UserError(
                f"{place} has the answers {seen[ids]!r} and {answer!r}, which are the same tokens for this model: give"
                " each answer (or label word) another text"
            )
        if not unknown.isdisjoint(ids):
            raise UserError(
                f"{place} has the answer {answer!r}, in which the model's vocabulary lacks a word or a character: give"
                " it another text"
            )
        if found := special.intersection(ids):
            raise UserError(
                f"{place} has the answer {answer!r}, in which {tokenizer.convert_ids_to_tokens(min(found))!r} is a"
                " special token of the model: leave it out"
            )


def warn_of_long_answers(source: str, answers: Sequence[Sequence[int]], most: int) -> None:
    """Says once for a split how many of its answers the model learns but never generates to the end.

    Args:
        source: The split, for the message.
        answers: The token ids of the answer of each record.
        most: Number of tokens that are generated.
    """
    if longer := [len(answer) for answer in answers if len(answer) > most]:
        rank_zero_warn(
            f"{source} has {len(longer)} answers with more tokens than the task generates ({most}; the longest has"
            f" {max(longer)}): they are trained on whole, but a generated answer stops before; shorten them"
        )


def _num_shared_tokens(texts: Sequence[Sequence[int]]) -> int:
    """Returns the length of the longest common start of all texts, in tokens."""
    aligned = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*texts, strict=False))
    return sum(1 for _ in aligned)


def are_single_tokens(tokenized: TokenizedQuestions) -> bool:
    """Returns whether all prompts have the same answers, and each answer is a different single token."""
    first = tokenized[0][1]
    tokens = [token for answer in first for token in answer]
    return len(set(tokens)) == len(tokens) == len(first) and all(own == first for _, own in tokenized)
