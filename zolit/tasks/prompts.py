"""From a record to token ids: the template, the prompt's tokens, the answers' tokens.

Nothing here reads a file or keeps a state.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from zolit.errors import UserError


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt with named gaps, such as ``{sentence} It was``.

    Attributes:
        parts: Literal text and the column that follows it, in order; the column is None after the last text.
    """

    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str, option: str) -> Template:
        """Reads a template: ``{column}`` stands for a record's value, ``{{`` and ``}}`` for braces.

        Args:
            text: The template.
            option: Where it is from, for messages.

        Raises:
            UserError: If the braces do not match, a gap is more than a plain name, or there is no gap at all.
        """
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise UserError(f"{option}: {text!r} cannot be read: {error}") from None
        for _, field, spec, conversion in parsed:
            if field is not None and (not field or spec or conversion):
                raise UserError(f"{option}: {text!r} may have gaps of the plain form {{column}} only")
        if all(field is None for _, field, _, _ in parsed):
            raise UserError(f"{option}: {text!r} has no gap: name a column in it, as in '{{sentence}} It was'")
        return cls(tuple((literal, field) for literal, field, _, _ in parsed))

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that the template names."""
        return tuple(field for _, field in self.parts if field is not None)

    def render(self, record: Mapping[str, Any]) -> str:
        """The prompt for a record, which has a value in each of :attr:`fields`; values lose the spaces around them."""
        return "".join(literal + ("" if field is None else str(record[field]).strip()) for literal, field in self.parts)


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, with what the tokenizer puts before a text (a bos) but not what it puts after (an eos).

    After an eos the label word would be the beginning of a new text. An empty prompt has no tokens at all.
    """
    encoded = tokenizer(list(prompts), return_special_tokens_mask=True, verbose=False)
    result = []
    for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        end = len(ids)
        while end > 0 and special[end - 1]:
            end -= 1
        result.append(ids[:end])
    return result


def continued(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[Sequence[str]]
) -> list[tuple[list[int], list[list[int]]]]:
    """Token ids of each prompt and, separately, of each answer where it goes on with the prompt.

    Answers are not tokenized alone: with most tokenizers " great" after a text differs from "great" at the beginning
    of one, and sentencepiece puts a space before a text by itself. A last token of the prompt that melts into an answer
    counts as the answer's, and then as that of all.

    Args:
        tokenizer: The model's tokenizer.
        prompts: Prompts as the model gets them.
        answers: What may follow each.

    Returns:
        A pair for each prompt. An answer that adds no token has none.
    """
    flat = [prompt + answer for prompt, own in zip(prompts, answers, strict=True) for answer in own]
    heads, wholes = encode_prompts(tokenizer, prompts), iter(encode_prompts(tokenizer, flat) if flat else [])
    result = []
    for head, own in zip(heads, answers, strict=True):
        full = [next(wholes) for _ in own]
        kept = _shared([head, *full])
        result.append((head[:kept], [ids[kept:] for ids in full]))
    return result


def _shared(texts: Sequence[Sequence[int]]) -> int:
    """Returns how many tokens all texts begin with."""
    aligned = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*texts, strict=False))
    return sum(1 for _ in aligned)
