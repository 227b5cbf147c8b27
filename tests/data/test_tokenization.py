from __future__ import annotations

import re

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.helpers.words import VOCABULARY, build_tokenizer
from zolit import quickstart
from zolit.data.tokenization import encode_continuations, encode_prompts, end_of_long_text
from zolit.errors import UserError
from zolit.tasks.template import Template


def test_template_renders_columns_and_braces() -> None:
    template = Template.parse("{{a}} {a}: {the b}{a} end", "option")
    assert template.fields == ("a", "the b", "a")
    assert template.render({"a": 1, "the b": "{x}", "c": 0}) == "{a} 1: {x}1 end"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a} {", "cannot be parsed"),
        ("{a!r} was", "write fields as plain {column}"),
        ("{a:>3} was", "write fields as plain {column}"),
        ("{} was", "write fields as plain {column}"),
        ("It was", "has no field"),
    ],
)
def test_template_mistakes(text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        Template.parse(text, "option")


def test_prompts_keep_the_bos_and_lose_the_eos() -> None:
    plain = [[1, VOCABULARY["a"], VOCABULARY[" was"]], []]
    assert encode_prompts(build_tokenizer(), ["a was", ""]) == plain
    assert encode_prompts(build_tokenizer("</s>"), ["a was", ""]) == plain


@pytest.mark.parametrize("suffix", ["", "</s>"])
def test_answers_are_tokenized_as_continuations(suffix: str) -> None:
    tokenizer = build_tokenizer(suffix)
    ((prompt, answers),) = encode_continuations(tokenizer, ["a b It was"], [[" terrible", " great", ""]])
    assert prompt == [1, *(VOCABULARY[word] for word in ("a", " b", " It", " was"))]
    assert answers == [[VOCABULARY[" ter"], VOCABULARY["rible"]], [VOCABULARY[" great"]], []]


def test_a_token_that_merges_with_one_answer_belongs_to_all() -> None:
    """The prompt's last space is one token, or a part of the next word's token."""
    ((prompt, answers),) = encode_continuations(build_tokenizer(), ["It was "], [["bad", " "]])
    assert prompt == [1, VOCABULARY["It"], VOCABULARY[" was"]]
    assert answers == [[VOCABULARY[" bad"]], [VOCABULARY[" "], VOCABULARY[" "]]]


def test_label_words_of_a_tokenizer_that_begins_texts_with_a_space() -> None:
    vocabulary = {"<unk>": 0, "▁was": 1, "▁great": 2, "▁bad": 3, "great": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    assert encode_continuations(fast, ["was"], [[" bad", " great"]]) == [([1], [[3], [2]])]


@pytest.mark.parametrize("text", [" a fine inn, and  not dear" * 40_000, "a" * 300_000, "naïve café €" * 30_000])
def test_the_end_of_a_long_text_has_the_same_last_tokens(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(quickstart.MODEL)
    end = end_of_long_text(tokenizer, text, 128)
    assert len(end) < len(text)
    assert encode_prompts(tokenizer, [end])[0][-128:] == encode_prompts(tokenizer, [text])[0][-128:]


def test_texts_that_may_fit_stay_whole() -> None:
    tokenizer = AutoTokenizer.from_pretrained(quickstart.MODEL)
    for text, limit in (("a" * 2**14, 4), ("a" * 100_000, 100_000), ("a" * 2**20, None)):
        assert end_of_long_text(tokenizer, text, limit) == text
    assert len(end_of_long_text(tokenizer, "a" * 2**21, None)) == 2**20
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    text = "a" + " " * 100_000 + "a a a"  # four tokens, and spaces that are none
    assert end_of_long_text(fast, text, 4) == text
    assert len(end_of_long_text(fast, "a " * 100_000, 4)) < 100_000


def test_a_tokenizer_that_fails() -> None:
    """It has no token for unknown words."""
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="<unk>")))
    with pytest.raises(UserError, match=r"the tokenizer of .* cannot read a text: .*UNK"):
        encode_prompts(fast, ["b"])
