"""A word-level tokenizer of a few words, and records to go with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["a", "b", "c", "It", "was", "fun", " a", " b", " c", " It", " was", " fun", " great", " good", " bad"]
VOCABULARY = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", " ", "ter", " ter", "rible", *WORDS])}


def build_tokenizer(suffix: str = "") -> PreTrainedTokenizerFast:
    """Builds a tokenizer. A word with the space before it is a token; " terrible" is two tokens.

    A bos comes first, and ``suffix`` last.
    """
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?ter|rible| ?\w+| "), behavior="removed", invert=True)
    special = [("<s>", 1), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"<s> $A {suffix}".strip(), special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def sentences(count: int) -> list[dict[str, Any]]:
    """Returns records of different lengths; all prompts differ."""
    letters = "abc"
    return [
        {"sentence": " ".join(letters[i // 3**k % 3] for k in range(1 + i % 7)), "label": i % 2} for i in range(count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """Writes records as jsonl, and returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
