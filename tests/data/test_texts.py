"""Texts as examples: special tokens, lengths, blocks, and records that hold no text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import BertConfig

from tests.helpers.words import VOCABULARY, build_tokenizer, write
from zolit.data.datamodule import PromptedData
from zolit.errors import UserError
from zolit.models.batches import TextBatch, micro_batches
from zolit.tasks.text import Text

Build = Callable[..., PromptedData]
WORDS = {number: word for word, number in VOCABULARY.items()}
TEXTS = ["a b", "c was fun", "a", "It was great a b"]


def rows(texts: list[Any], column: str = "text") -> list[dict[str, Any]]:
    return [{"id": 7, column: text} for text in texts]


@pytest.fixture
def texts(module: Build, tmp_path: Path) -> Build:
    """Returns a function that makes a data module of texts, for training and for validation."""

    def build(*found: Any, packed: bool = False, column: str = "text", **options: Any) -> PromptedData:
        file = write(tmp_path / "texts.jsonl", rows(list(found) or TEXTS, column))
        task = Text(column, packed)
        return module(**{"task": task, "train_file": file, "validation_file": file, "batch_size": 1} | options)

    return build


def examples(data: PromptedData, part: str = "validation", stage: str = "validate") -> list[str]:
    data.setup(stage)
    encoded: Any = data._encoded[part]
    return ["".join(WORDS[int(token)] for token in text) for text in encoded.texts]


def test_each_text_is_an_example_with_the_tokens_of_its_tokenizer(texts: Build) -> None:
    assert examples(texts()) == ["<s>a b", "<s>c was fun", "<s>a", "<s>It was great a b"]
    assert examples(texts(*TEXTS, column="body")) == examples(texts())


def test_padding_is_on_the_right_and_micro_batches_drop_it(texts: Build) -> None:
    data = texts()
    data.setup("validate")
    batch: Any = data._encoded["validation"][[2, 0, 1]]
    assert isinstance(batch, TextBatch)
    assert batch.attention_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.input_ids[0, :2].tolist() == [VOCABULARY["<s>"], VOCABULARY["a"]]
    assert batch.predicted.tolist() == [1, 2, 3]
    first, second = micro_batches(batch, 2)
    assert first.input_ids.tolist() == batch.input_ids[:2, :3].tolist()
    assert second.indices.tolist() == [1]
    twice = batch.repeated(2)
    assert twice.input_ids.tolist() == batch.input_ids.tolist() * 2
    assert twice.indices.tolist() == [2, 0, 1] * 2


@pytest.mark.parametrize("size", [2, 3, 4, 5, 100])
def test_packed_texts_are_blocks_of_all_tokens(texts: Build, model_folder: str, size: int) -> None:
    whole = "<s>a b</s><s>c was fun</s><s>a</s><s>It was great a b</s>"
    count = 4 + 5 + 3 + 7
    if size == 100:
        with pytest.raises(UserError, match=r"--data.max_tokens 100 is more than the model's context of 24 tokens"):
            examples(texts(packed=True, max_tokens=size))
        size = 24  # the context
    data = texts(packed=True, max_tokens=None if size == 24 else size)
    found = examples(data)
    dropped = "</s>" if count % size == 1 else ""  # nothing predicts a last token alone
    assert "".join(found) + dropped == whole
    assert [len(text) for text in data._encoded["validation"].texts[:-1]] == [size] * (len(found) - 1)  # type: ignore[union-attr]  # texts
    assert examples(texts(packed=True), "predict", "predict") == examples(texts())


def test_an_end_token_of_the_tokenizer_is_not_doubled(texts: Build, model_folder: str, tmp_path: Path) -> None:
    folder = tmp_path / "ends"
    folder.mkdir()
    (folder / "config.json").write_text(Path(model_folder, "config.json").read_text())
    build_tokenizer("</s>").save_pretrained(folder)
    assert examples(texts(name_or_path=str(folder)))[2] == "<s>a</s>"
    assert examples(texts("a", "b", packed=True, name_or_path=str(folder))) == ["<s>a</s><s>b</s>"]


def test_a_text_that_is_too_long_loses_its_end_or_is_refused(texts: Build) -> None:
    long = "c" + " a" * 30 + " b"
    assert examples(texts("a b", long, too_long="cut", max_tokens=5)) == ["<s>a b", "<s>c a a a"]
    assert examples(texts("c" + " a" * 40_000, too_long="cut")) == ["<s>c" + " a" * 22]
    with pytest.raises(
        UserError, match=r"record 2 of .*texts.jsonl has a text of 33 tokens in the column 'text', more"
    ):
        examples(texts("a b", long))
    with pytest.raises(UserError, match=r"has a text of 80001 characters .* than the limit of 24 tokens: shorten it, "):
        examples(texts("c" + " a" * 40_000))
    with pytest.raises(UserError, match=r"--data.max_tokens must be at least 2, not 1"):
        examples(texts(max_tokens=1, too_long="cut"))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "has no value in the column 'body' that --data.task.column names"),
        ("", "has no text in the column 'body'"),
        ("  \n", "has no text in the column 'body'"),
        (7, "has a value of type int in the column 'body' of --data.task.column, where a text belongs"),
        (True, "has a value of type bool in the column 'body'"),
        (["a", "b"], "has a value of type list in the column 'body'"),
        ({"a": "b"}, "has a value of type dict in the column 'body'"),
        ("a\ud83d", "has .* in the column 'body', which is half of a character"),
        ("a\0b", "has a NUL character in the column 'body'"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_records_without_a_text_are_refused(texts: Build, value: Any, said: str, packed: bool) -> None:
    with pytest.raises(UserError, match=r"^record 2 of .*texts.jsonl " + said) as refused:
        examples(texts("a b", value, packed=packed, column="body"))
    assert "\n" not in str(refused.value).replace("\\n", "")


def test_a_text_of_one_token_is_refused_unless_it_is_packed(
    texts: Build, module: Build, model_folder: str, tmp_path: Path
) -> None:
    """Without a token at the start, nothing predicts the only token."""
    folder = tmp_path / "bare"
    build_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(Path(model_folder, "config.json").read_text())
    written = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(written | {"post_processor": None}))
    with pytest.raises(UserError, match=r"record 2 of .* has a text of one token in the column 'text'; a loss needs"):
        examples(texts("a b", "a", name_or_path=str(folder)))
    assert examples(texts("a b", "a", packed=True, name_or_path=str(folder))) == ["a b</s>a</s>"]


def test_options_that_need_answers_are_refused(texts: Build) -> None:
    for option in ("demonstrations", "calibrated"):
        with pytest.raises(UserError, match=f"--data.{option} needs a task with answers; plain texts"):
            texts(**{option: True}).setup("validate")


def test_masked_models_are_refused(texts: Build, tmp_path: Path) -> None:
    BertConfig(architectures=["BertForMaskedLM"], vocab_size=50).save_pretrained(tmp_path / "bert")
    build_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match=r"bert is a masked language model, which .*, or a causal language model"):
        examples(texts(name_or_path=str(tmp_path / "bert")))


def test_a_tokenizer_without_an_end_token_cannot_pack(texts: Build, model_folder: str, tmp_path: Path) -> None:
    folder = tmp_path / "endless"
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(Path(model_folder, "config.json").read_text())
    with pytest.raises(UserError, match=r"--data.task.packed: the tokenizer of .*endless has no end token"):
        examples(texts(packed=True, name_or_path=str(folder)))


@pytest.mark.parametrize("kind", ["csv", "parquet", "saved"])
def test_texts_of_other_files(texts: Build, tmp_path: Path, kind: str) -> None:
    made = datasets.Dataset.from_list(rows(TEXTS))
    if kind == "saved":
        datasets.DatasetDict({"train": made, "validation": made}).save_to_disk(tmp_path / "saved")
        options: dict[str, Any] = {"dataset": str(tmp_path / "saved"), "train_file": None, "validation_file": None}
    else:
        file = tmp_path / f"texts.{kind}"
        (made.to_csv if kind == "csv" else made.to_parquet)(file)
        options = {"validation_file": str(file)}
    assert examples(texts(**options)) == examples(texts())
