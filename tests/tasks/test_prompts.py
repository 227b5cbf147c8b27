from __future__ import annotations

import re

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tasks.words import VOCABULARY, build_tokenizer
from zolit.errors import UserError
from zolit.tasks.prompts import Template, encode_prompts, label_tokens


def test_template_renders_columns_and_braces() -> None:
    template = Template.parse("{{a}} {a}: {the b}{a} end")
    assert template.fields == ("a", "the b", "a")
    assert template.render({"a": 1, "the b": "{x}", "c": 0}) == "{a} 1: {x}1 end"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a} {", "cannot be read"),
        ("{a!r} was", "of the plain form {column} only"),
        ("{a:>3} was", "of the plain form {column} only"),
        ("{} was", "of the plain form {column} only"),
        ("It was", "has no gap"),
    ],
)
def test_template_mistakes(text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        Template.parse(text)


def test_prompts_keep_the_bos_and_lose_the_eos() -> None:
    plain = [[1, VOCABULARY["a"], VOCABULARY[" was"]], []]
    assert encode_prompts(build_tokenizer(), ["a was", ""]) == plain
    assert encode_prompts(build_tokenizer("</s>"), ["a was", ""]) == plain


@pytest.mark.parametrize("suffix", ["", "</s>"])
def test_label_words_are_tokenized_as_continuations(suffix: str) -> None:
    tokenizer = build_tokenizer(suffix)
    tokens = label_tokens(tokenizer, "a b It was", {"0": " terrible", "1": " great"})
    assert tokens == [VOCABULARY[" ter"], VOCABULARY[" great"]]
    assert label_tokens(tokenizer, "a ter", {"0": "rible", "1": " was"}) == [VOCABULARY["rible"], VOCABULARY[" was"]]


def test_label_words_of_a_tokenizer_that_begins_texts_with_a_space() -> None:
    vocabulary = {"<unk>": 0, "▁was": 1, "▁great": 2, "▁bad": 3, "great": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    assert label_tokens(fast, "was", {"0": " bad", "1": " great"}) == [3, 2]


@pytest.mark.parametrize(
    ("prompt", "words", "message"),
    [
        (
            "It was",
            {"0": " great", "1": " great good"},
            "' great' and ' great good' begin with the same token",
        ),
        ("It was ", {"0": "bad", "1": "great"}, "'bad' does not begin with a token of its own after the prompt"),
        ("It was ", {"0": "bad good", "1": "great"}, "'bad good' does not begin with a token of its own"),
        ("It was", {"0": " bad", "1": ""}, "a label word is empty"),
    ],
)
def test_label_word_mistakes(prompt: str, words: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        label_tokens(build_tokenizer(), prompt, words)
