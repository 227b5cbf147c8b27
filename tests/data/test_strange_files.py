"""The strange relatives of data files: each is read right, or refused in one sentence with file, record and column."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import normalizers, processors
from transformers import LlamaConfig, PreTrainedTokenizerFast

from tests.helpers.words import build_tokenizer, write
from zolit.data.datamodule import PromptedData
from zolit.data.files import read_file
from zolit.errors import UserError
from zolit.tasks.classification import Classification
from zolit.tasks.copa import COPA
from zolit.tasks.generation import Generation
from zolit.tasks.multiple_choice import MultipleChoice
from zolit.tasks.record import ReCoRD

Build = Callable[..., PromptedData]
BOM = b"\xef\xbb\xbf"
ROWS = b'{"sentence": "a", "label": 0}\n{"sentence": "b", "label": 1}\n'
CELLS = b"sentence,label\na,0\nb,1\n"
TWO = [("a", "0"), ("b", "1")]


def table(columns: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()


READ: dict[str, tuple[str, bytes, list[tuple[str, str]]]] = {
    "jsonl, mark of UTF-8": ("a.jsonl", BOM + ROWS, TWO),
    "jsonl, lines of Windows": ("a.jsonl", ROWS.replace(b"\n", b"\r\n"), TWO),
    "jsonl, lines of an old Mac": ("a.jsonl", ROWS.replace(b"\n", b"\r"), TWO),
    "jsonl, blank lines": ("a.jsonl", b"\n" + ROWS.replace(b"\n", b"\n\n"), TWO),
    "jsonl, no line break at the end": ("a.jsonl", ROWS[:-1], TWO),
    "jsonl, one row": ("a.jsonl", ROWS.splitlines()[0], TWO[:1]),
    "jsonl, other columns in other rows": (
        "a.jsonl",
        b'{"sentence": "a", "label": 0, "x": 1}\n{"label": 1, "sentence": "b", "y": null}',
        TWO,
    ),
    "jsonl, a type that changes": ("a.jsonl", b'{"sentence": "a", "label": 0}\n{"sentence": "b", "label": "1"}', TWO),
    "jsonl, whole characters by halves": (
        "a.jsonl",
        rb'{"sentence": "\ud83d\ude00", "label": 0}',
        [("\N{GRINNING FACE}", "0")],
    ),
    "csv, mark of UTF-8": ("a.csv", BOM + CELLS, TWO),
    "csv, lines of Windows": ("a.csv", CELLS.replace(b"\n", b"\r\n"), TWO),
    "csv, a line break in quotes": ("a.csv", b'sentence,label\n"a\nc",0\n', [("a\nc", "0")]),
    "csv, quotes in quotes": ("a.csv", b'sentence,label\n"a ""b""",0\n', [('a "b"', "0")]),
    "csv, blank lines": ("a.csv", CELLS.replace(b"\n", b"\n\n"), TWO),
    "csv, numbers stay as they are written": ("a.csv", b"sentence,label\n007,01\n", [("007", "01")]),
    "parquet, dictionary": (
        "a.parquet",
        table({"sentence": pyarrow.array(["a", "b"]).dictionary_encode(), "label": [0, 1]}),
        TWO,
    ),
    "parquet, large text": (
        "a.parquet",
        table({"sentence": pyarrow.array(["a", "b"], pyarrow.large_string()), "label": [0, 1]}),
        TWO,
    ),
    "parquet, numbers": (
        "a.parquet",
        table({"sentence": [1, 2], "label": [Decimal(0), Decimal(1)]}),
        [("1", "0"), ("2", "1")],
    ),
    "parquet, dates": ("a.parquet", table({"sentence": [date(2020, 1, 2)], "label": [0]}), [("2020-01-02", "0")]),
}


@pytest.mark.parametrize("case", READ)
def test_files_that_are_read(tmp_path: Path, case: str) -> None:
    name, content, expected = READ[case]
    (tmp_path / name).write_bytes(content)
    records = read_file(str(tmp_path / name))
    assert [(str(row["sentence"]), str(row["label"])) for row in records.rows] == expected


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_row_of_a_megabyte_is_read(tmp_path: Path, name: str) -> None:
    text, file = "word " * 210_000, tmp_path / name
    contents = {
        "a.jsonl": json.dumps({"sentence": text, "label": 0}).encode(),
        "a.parquet": table({"sentence": [text], "label": [0]}),
    }
    file.write_bytes(contents[name])
    assert read_file(str(file)).rows[0]["sentence"] == text


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "packed": ("a.jsonl", gzip.compress(ROWS), "line 1 of .*a.jsonl is not UTF-8"),
    "a list of records": ("a.jsonl", b'[{"sentence": "a", "label": 0}]', "line 1 of .* is not a JSON object"),
    "a comma too much": ("a.jsonl", b'{"sentence": "a", "label": 0,}', "line 1 of .*a.jsonl is not valid JSON"),
    "a name twice": (
        "a.jsonl",
        b'{"sentence": "a", "label": 0, "label": 1}',
        "line 1 of .*a.jsonl has .*'label' twice",
    ),
    "two records in a line": ("a.jsonl", ROWS.replace(b"\n", b" "), "line 1 of .*a.jsonl is not valid JSON"),
    "UTF-16": ("a.jsonl", ROWS.decode().encode("utf-16"), "line 1 of .*a.jsonl is not UTF-8"),
    "UTF-16 without a mark": (
        "a.jsonl",
        ROWS.decode().encode("utf-16-le"),
        "line 1 of .*a.jsonl has a NUL .* not UTF-8",
    ),
    "only blank lines": ("a.jsonl", b"\n \n", "a.jsonl is empty"),
    "a json file": ("a.json", ROWS, "unknown format"),
    "a column with spaces": ("a.csv", b"sentence ,label\na,0\n", "names the column 'sentence', but .* has only"),
    "a semicolon": ("a.csv", b"sentence;label\na;0\n", "names the column 'sentence', but .* has only"),
    "too few cells": ("a.csv", CELLS + b"c\n", "record 3 of .*a.csv has no value in the column 'label'"),
    "too many cells": ("a.csv", CELLS + b"c,1,2\n", "record 3 of .*a.csv has more cells"),
    "null as a label": ("a.jsonl", ROWS + b'{"sentence": "a", "label": null}', "record 3 of .* no value .*'label'"),
    "NaN as a label": ("a.jsonl", ROWS + b'{"sentence": "a", "label": NaN}', "record 3 of .* has the label 'nan'"),
    "a list as a label": ("a.jsonl", ROWS + b'{"sentence": "a", "label": [0]}', "record 3 of .* has the label"),
    "a struct in parquet": (
        "a.parquet",
        table({"sentence": [{"a": "b"}], "label": [0]}),
        "record 1 of .* has an object in the column 'sentence'",
    ),
    "messages of a chat": (
        "a.jsonl",
        b'{"sentence": [{"role": "user", "content": "a"}], "label": 0}',
        "record 1 of .*list in the column 'sentence'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_are_refused(module: Build, tmp_path: Path, case: str) -> None:
    name, content, message = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        module(train_file=str(tmp_path / name), batch_size=1).setup("fit")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", [1, "1", 1.0, True])
def test_labels_that_stand_for_1(module: Build, tmp_path: Path, label: object) -> None:
    file = write(tmp_path / "labels.jsonl", [{"sentence": "a", "label": 0}, {"sentence": "b", "label": label}])
    data = module(train_file=file, batch_size=1)
    data.setup("fit")
    assert data._encoded["train"].labels.tolist() == [0, 1]


def test_labels_that_yaml_reads_as_booleans() -> None:
    task = Classification(label_words={True: " great", False: " bad"})  # type: ignore[dict-item]  # as YAML reads yes
    for value, index in ((True, 0), (False, 1), ("True", 0), ("true", 0), (1, 0), (0, 1)):
        assert task.correct_answers({"label": value}) == (index,)
    with pytest.raises(UserError, match=r"has the label 'yes'.* write the label in quotes"):
        task.correct_answers({"label": "yes"})
    with pytest.raises(UserError, match=r"no word for it \(only for True, False\)$"):
        task.correct_answers({"label": "maybe"})


def test_labels_of_other_types() -> None:
    task = Classification(label_words={1.0: " great", 2: " bad"})  # type: ignore[dict-item]  # as YAML reads 1.0
    for value, index in ((1, 0), ("1", 0), (1.0, 0), ("1.0", 0), (2.0, 1)):
        assert task.correct_answers({"label": value}) == (index,)
    with pytest.raises(UserError, match="a label is null"):
        Classification(label_words={None: " great", "1": " bad"})  # type: ignore[dict-item]  # as YAML reads null
    with pytest.raises(UserError, match="a label is written twice"):
        Classification(label_words={1: " great", "1": " bad"})  # type: ignore[dict-item]  # as YAML reads 1


@pytest.mark.parametrize("label", [1, "1", 1.0, True])
def test_labels_that_number_choices(label: object) -> None:
    assert MultipleChoice("{a}", ["b", "c"]).correct_answers({"label": label}) == (1,)
    assert COPA().correct_answers({"label": label}) == (1,)


def test_more_examples_than_a_file_has(module: Build, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        data = module(train_examples=1000, validation_examples=11)
        data.setup("fit")
    assert (len(data._encoded["train"]), len(data._encoded["validation"])) == (37, 11)
    said = [record.message for record in caplog.records if "are taken" in record.message]
    assert len(said) == 1
    assert "--data.train_examples asks for 1000 examples" in said[0]
    assert "train.jsonl has 37" in said[0]


ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown word": ({"label_words": {"0": " bad", "1": " splendid"}}, "answer ' splendid', in which .* lacks"),
    "two unknown words": ({"label_words": {"0": " awful", "1": " splendid"}}, "answer ' awful', in which .* lacks"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_label_words_that_the_vocabulary_lacks(module: Build, case: str) -> None:
    options, message = ANSWERS[case]
    with pytest.raises(UserError, match=rf"record 1 of .*{message}"):
        module(**options).setup("fit")


def model_of(folder: Path, tokenizer: PreTrainedTokenizerFast, context: int) -> str:
    tokenizer.save_pretrained(folder)
    LlamaConfig(max_position_embeddings=context, hidden_size=8, num_attention_heads=1).save_pretrained(folder)
    return str(folder)


def test_answers_with_the_same_tokens(module: Build, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    rows = [{"question": "a", "first": "b", "second": "B" if index == 2 else "c", "label": 0} for index in range(4)]
    file = write(tmp_path / "choices.jsonl", rows)
    data = module(
        name_or_path=model_of(tmp_path / "model", tokenizer, 24),
        task=MultipleChoice("{question}", ["first", "second"]),
        train_file=file,
        validation_file=None,
    )
    with pytest.raises(UserError, match=r"record 3 of .*choices\.jsonl has the answers ' b' and ' B'"):
        data.setup("fit")


@pytest.mark.parametrize("answer", ["a\nb", "a\r\nb", "a\u2028b", ["a\nb", "c"], " ", [], "splendid", "a</s>"])
def test_answers_that_cannot_be_trained_on(module: Build, tmp_path: Path, answer: object) -> None:
    file = write(tmp_path / "answers.jsonl", [{"question": "a", "answer": answer}] * 4)
    model = model_of(tmp_path / "model", build_tokenizer(), 99)
    data = module(name_or_path=model, task=Generation("{question}"), train_file=file, validation_file=file)
    with pytest.raises(
        UserError, match=r"record 1 of .*answers\.jsonl has (an answer with a line|no answer|the answer)"
    ):
        data.setup("fit")
    data.setup("predict")  # it needs no answers


def test_answers_of_one_line_stay() -> None:
    for answer in ("a", " a ", "a\n", ["a", "b\nc"]):
        task, record = Generation("{question}"), {"question": "q", "answer": answer}
        assert task.correct_answers(record) == (0,)
        assert task.question(record).answers == (" a\n",)


@pytest.mark.parametrize("word", [" </s>", " bad</s>", "<s> bad"])
def test_label_words_with_special_tokens(module: Build, word: str) -> None:
    with pytest.raises(UserError, match=r"is a special token of the model"):
        module(label_words={"0": " great", "1": word}).setup("fit")


def test_a_repeated_answer_is_one_answer(module: Build, tmp_path: Path) -> None:
    """As in ReCoRD, whose lists of entities repeat some."""
    rows = [{"passage": "a", "query": "@placeholder was", "entities": ["b", "c", "b"], "answers": ["b"]}] * 4
    file = write(tmp_path / "entities.jsonl", rows)
    data = module(task=ReCoRD(), train_file=file, validation_file=file)
    data.setup("fit")
    assert data._encoded["train"].correct[0] == (0, 2)


def test_a_text_that_begins_with_special_tokens_is_cut(module: Build, tmp_path: Path) -> None:
    """The one token that the tokenizer puts before a text stays; those of the text are cut as others."""
    file = write(tmp_path / "long.jsonl", [{"sentence": "</s>" * 30 + " a b c", "label": 0}] * 4)
    data = module(train_file=file, validation_file=None, too_long="cut", template="{sentence}")
    data.setup("fit")
    prompt = data._encoded["train"].prompts[0].tolist()
    tokenizer = build_tokenizer()
    assert len(prompt) == 24
    assert tokenizer.convert_ids_to_tokens([prompt[0], *prompt[-3:]]) == ["<s>", " a", " b", " c"]


def test_all_tokens_before_a_text_stay_when_it_is_cut(tmp_path: Path, module: Build) -> None:
    tokenizer = build_tokenizer()
    special = [("<s>", 1), ("</s>", 2)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("</s> <s> $A", special_tokens=special)
    file = write(tmp_path / "long.jsonl", [{"sentence": "a b c " * 20, "label": 0}] * 4)
    model = model_of(tmp_path / "model", tokenizer, 24)
    data = module(name_or_path=model, train_file=file, validation_file=None, too_long="cut")
    data.setup("fit")
    prompt = data._encoded["train"].prompts[0].tolist()
    assert (len(prompt), prompt[:2], prompt.count(1)) == (24, [2, 1], 1)
