"""From a record to token ids: the template, the prompt's tokens, the label words' tokens.

Nothing here reads a file or keeps a state.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    def parse(cls, text: str) -> Template:
        """Reads a template: ``{column}`` stands for a record's value, ``{{`` and ``}}`` for braces.

        Raises:
            UserError: If the braces do not match, a gap is more than a plain name, or there is no gap at all.
        """
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise UserError(f"the template {text!r} cannot be read: {error}") from None
        for _, field, spec, conversion in parsed:
            if field is not None and (not field or spec or conversion):
                raise UserError(f"the template {text!r} may have gaps of the plain form {{column}} only")
        if all(field is None for _, field, _, _ in parsed):
            raise UserError(f"the template {text!r} has no gap: name a column in it, as in '{{sentence}} It was'")
        return cls(tuple((literal, field) for literal, field, _, _ in parsed))

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that the template names."""
        return tuple(field for _, field in self.parts if field is not None)

    def render(self, record: Mapping[str, Any]) -> str:
        """The prompt for one record, which has a value in each of :attr:`fields`."""
        return "".join(literal + ("" if field is None else str(record[field])) for literal, field in self.parts)


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


def label_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, words: Mapping[str, str]) -> list[int]:
    """First token of every label word where it continues a prompt.

    The word is not tokenized alone: with most tokenizers " great" after a text differs from "great" at the beginning
    of one, and sentencepiece puts a space before a text by itself.

    Args:
        tokenizer: The model's tokenizer.
        prompt: A prompt as the model gets it.
        words: The word of each label, usually with a leading space.

    Returns:
        One token id per label, in the order of ``words``.

    Raises:
        UserError: If a word is empty, melts into the prompt's last token, or shares its first token with another.
    """
    head, *continued = encode_prompts(tokenizer, [prompt, *(prompt + word for word in words.values())])
    owners: dict[int, str] = {}
    for word, ids in zip(words.values(), continued, strict=True):
        if not word:
            raise UserError("a label word is empty: give every label in --data.label_words a word")
        if ids[: len(head)] != head or len(ids) == len(head):
            raise UserError(
                f"the label word {word!r} does not begin with a token of its own after the prompt {prompt[-30:]!r}:"
                " let the template end without a space and the word begin with one"
            )
        first = ids[len(head)]
        if first in owners:
            raise UserError(
                f"the label words {owners[first]!r} and {word!r} begin with the same token"
                f" {tokenizer.decode([first])!r}: choose words that differ in their first token"
            )
        owners[first] = word
    return list(owners)
