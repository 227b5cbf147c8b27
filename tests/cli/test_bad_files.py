"""Data files and data sets that are damaged, strange or too large end with one sentence that names them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from transformers import AutoTokenizer, RobertaConfig

from tests.helpers.refusal import jsonl, refusal
from zolit import quickstart
from zolit.data.datamodule import PromptedData
from zolit.errors import UserError
from zolit.tasks.classification import Classification
from zolit.tasks.multiple_choice import MultipleChoice

Refused = Callable[..., str]
GOOD: list[Any] = [{"sentence": f"The inn was fine {i}.", "label": i % 2} for i in range(32)]
RECORD = '{"sentence": "The inn was fine.", "label": 1}\n'


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    return lambda *options: refusal(monkeypatch, capfd, tmp_path, *options)


def parquet(rows: list[Any]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink, write_page_checksum=True, compression="none")
    return bytes(sink.getvalue())


def damaged_page(content: bytes) -> bytes:
    at = content.index(b"was fine 7")
    return content[:at] + b"was poor 7" + content[at + 10 :]


FILES: dict[str, tuple[str, bytes | str, tuple[str, ...]]] = {
    # name: file, content, what the sentence says besides the name of the file
    "csv, empty": ("a.csv", "", ("is empty",)),
    "csv, blank lines": ("a.csv", "\n\n\n", ("is empty",)),
    "csv, NUL": ("a.csv", "sentence,label\nfine,1\nf\0ne,0\n", ("line 3", "NUL")),
    "csv, UTF-16 without a mark": ("a.csv", "sentence,label\nfine,1\n".encode("utf-16-le"), ("line 1", "NUL")),
    "csv, UTF-16": ("a.csv", "sentence,label\nfine,1\n".encode("utf-16"), ("line 1", "UTF-8", "byte 1 ")),
    "csv, quote that stays open": ("a.csv", 'sentence,label\n"fine,1\n' + "bad,0\n" * 20, ("not valid csv",)),
    "csv, column twice": ("a.csv", "sentence,sentence,label\nfine,bad,1\n", ("two columns", "'sentence'")),
    "csv, empty cell": ("a.csv", "sentence,label\nfine,1\n,1\n", ("record 2", "'sentence'")),
    "jsonl, nested": ("a.jsonl", RECORD + "[" * 100_000 + "\n", ("line 2", "brackets")),
    "jsonl, nested objects": ("a.jsonl", RECORD + '{"a":' * 100_000 + "\n", ("line 2", "JSON")),
    "jsonl, endless number": ("a.jsonl", RECORD + '{"label": ' + "1" * 5000 + "}\n", ("line 2", "number")),
    "jsonl, a character cut": ("a.jsonl", RECORD.encode() * 900 + b'{"sentence": "\xc3"}\n', ("line 901", "byte 15 ")),
    "jsonl, latin-1": ("a.jsonl", RECORD.encode() + '{"sentence": "Café"}\n'.encode("latin-1"), ("line 2", "byte 18 ")),
    "jsonl, half a character": ("a.jsonl", RECORD + r'{"sentence": "\ud83d", "label": 1}', ("record 2", "'sentence'")),
    "jsonl, NUL": ("a.jsonl", RECORD + r'{"sentence": "a\u0000", "label": 1}', ("record 2", "NUL", "'sentence'")),
    "jsonl, list": ("a.jsonl", RECORD + '{"sentence": ["a"], "label": 1}', ("record 2", "list", "'sentence'")),
    "jsonl, object": ("a.jsonl", RECORD + '{"sentence": {"a": 1}, "label": 1}', ("record 2", "object", "'sentence'")),
    "jsonl, NaN": ("a.jsonl", RECORD + '{"sentence": NaN, "label": 1}', ("record 2", "nan", "'sentence'")),
    "jsonl, infinite": ("a.jsonl", RECORD + '{"sentence": 1e999, "label": 1}', ("record 2", "inf", "'sentence'")),
    "jsonl, blank": ("a.jsonl", RECORD + '{"sentence": "  \\n", "label": 1}', ("record 2", "'sentence'", "text")),
    "jsonl, label of a megabyte": ("a.jsonl", RECORD + json.dumps({"sentence": "a", "label": "x" * 10**6}), ("label",)),
    "jsonl, many columns": ("a.jsonl", json.dumps({f"column {i}": i for i in range(999)}), ("'sentence'", "column 0")),
    "parquet, empty": ("a.parquet", b"", ("not valid parquet",)),
    "parquet, zeroed": ("a.parquet", b"\0" * 2000, ("not valid parquet",)),
    "parquet, cut": ("a.parquet", parquet(GOOD)[:-30], ("not valid parquet",)),
    "parquet, damaged column": ("a.parquet", damaged_page(parquet(GOOD)), ("not valid parquet",)),
    "parquet, bytes": ("a.parquet", parquet([{"sentence": b"a", "label": 1}]), ("record 1", "bytes", "'sentence'")),
    "parquet, lists": ("a.parquet", parquet([{"sentence": ["a"], "label": 1}]), ("record 1", "list", "'sentence'")),
}


@pytest.mark.parametrize("case", FILES)
def test_data_files(refused: Refused, tmp_path: Path, case: str) -> None:
    name, content, expected = FILES[case]
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    said = refused(f"--data.train_file={file}")
    assert all(part in said for part in (name, *expected)), said


def test_paths(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is a folder" in refused(f"--data.train_file={tmp_path}")
    assert "too long" in refused(f"--data.train_file={'n' * 300}.jsonl")
    assert "~nobody-of-this-name" in refused("--data.train_file=~nobody-of-this-name/a.jsonl")
    assert "nnn" in refused("--data.train_file=null", f"--data.dataset={'n' * 300}")

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "a.jsonl")

    secret = jsonl(tmp_path / "a.jsonl", GOOD)
    with monkeypatch.context() as patch:
        original = Path.open
        patch.setattr(Path, "open", lambda path, *a, **k: (deny if path == secret else original)(path, *a, **k))
        said = refused(f"--data.train_file={secret}")
    assert said == f"cannot read {secret}: Permission denied"


ANSWERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "null among answers": ("Generation", {"question": "a", "answer": ["b", None]}, "null in the column 'answer'"),
    "object as answer": ("Generation", {"question": "a", "answer": {"b": 1}}, "object in the column 'answer'"),
    "list among answers": ("Generation", {"question": "a", "answer": [["b"]]}, "list in the column 'answer'"),
    "SQuAD's answers as text": ("SQuAD", {"title": "a", "context": "b", "question": "c", "answers": "d"}, "'answers'"),
    "SQuAD's texts as text": (
        "SQuAD",
        {"title": "a", "context": "b", "question": "c", "answers": {"text": "d"}},
        "list",
    ),
    "DROP's spans": ("DROP", {"passage": "a", "question": "c", "answers_spans": {"spans": [1, None]}}, "null in the"),
    "ReCoRD's entities": ("ReCoRD", {"passage": "a", "query": "b", "entities": "CD", "answers": ["C"]}, "'entities'"),
    "ReCoRD's answers": ("ReCoRD", {"passage": "a", "query": "b", "entities": ["C"], "answers": [None]}, "'answers'"),
    "COPA's choice": (
        "COPA",
        {"premise": "a", "choice1": ["b"], "choice2": "c", "question": "cause", "label": 0},
        "'choice1'",
    ),
    "COPA's question": (
        "COPA",
        {"premise": "a", "choice1": "b", "choice2": "c", "question": "why", "label": 0},
        "only cause and effect",
    ),
    "BoolQ's question": ("BoolQ", {"passage": "a", "question": ["b"], "answer": True}, "'question'"),
    "WSC's pronoun": ("WSC", {"text": "a", "span1_text": "b", "span2_text": {"c": 1}, "label": 0}, "'span2_text'"),
    "RTE's premise": ("RTE", {"premise": ["a"], "hypothesis": "b", "label": 0}, "'premise'"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_values_of_other_tasks(refused: Refused, tmp_path: Path, case: str) -> None:
    task, record, expected = ANSWERS[case]
    file = jsonl(tmp_path / "a.jsonl", [record] * 16)
    config = tmp_path / "task.yaml"
    options = {"template": "{question} is"} if task == "Generation" else {}
    config.write_text(json.dumps({"data": {"task": {"class_path": f"zolit.tasks.{task}", "init_args": options}}}))
    said = refused("--data.validation_file=null", f"--config={config}", f"--data.train_file={file}")
    assert f"record 1 of {file}" in said
    assert expected in said, said


def test_numbers_and_booleans_are_texts(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"sentence": value, "label": 0} for value in (7, 0.5, True, "7")])
    data = PromptedData(name_or_path=str(quickstart.MODEL), train_file=str(file), batch_size=4)
    data.setup("fit")
    prompts = [prompt.tolist() for prompt in data._encoded["train"].prompts]
    assert prompts[0] == prompts[3]
    assert len({tuple(prompt) for prompt in prompts}) == 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "reviews"
    part = datasets.Dataset.from_list(GOOD * 100)
    datasets.DatasetDict({"train": part}).save_to_disk(folder)
    return folder


ARROW = "train/data-00000-of-00001.arrow"
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: b"\0" * len(content),
    "list": lambda content: b"[]",
}


@pytest.mark.parametrize("damage", ["missing", *DAMAGES])
@pytest.mark.parametrize("part", ["dataset_dict.json", "train/state.json", "train/dataset_info.json", ARROW])
def test_saved_data_sets(refused: Refused, saved: Path, tmp_path: Path, part: str, damage: str) -> None:
    folder = tmp_path / "reviews"
    shutil.copytree(saved, folder)
    if damage == "missing":
        (folder / part).unlink()
    else:
        (folder / part).write_bytes(DAMAGES[damage]((folder / part).read_bytes()))
    said = refused("--data.train_file=null", f"--data.dataset={folder}")
    assert str(folder) in said
    assert damage == "missing" or Path(part).name in said


def test_saved_data_sets_with_fewer_records(refused: Refused, saved: Path, tmp_path: Path) -> None:
    """Arrow reads a file that ends between two groups of records as a whole one."""
    folder = tmp_path / "reviews"
    shutil.copytree(saved, folder)
    batch = pyarrow.RecordBatch.from_pylist(GOOD)
    with (folder / ARROW).open("wb") as file, pyarrow.ipc.new_stream(file, batch.schema) as stream:
        stream.write_batch(batch)
        size = file.tell()
        stream.write_batch(batch)
    with (folder / ARROW).open("r+b") as file:
        file.truncate(size)
    assert len(datasets.DatasetDict.load_from_disk(folder)["train"]) == len(GOOD)
    assert "is cut off" in refused("--data.train_file=null", f"--data.dataset={folder}")


def test_folders_as_data_sets(refused: Refused, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.mkdir()
    (script / "script.py").write_text("raise SystemExit('run')")
    assert str(script) in refused("--data.train_file=null", f"--data.dataset={script}")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "train-1.csv").write_text("sentence,label\nfine,1\n")
    (mixed / "train-2.csv").write_text("other,label,third\nfine,1,2\n")
    assert str(mixed) in refused("--data.train_file=null", f"--data.dataset={mixed}")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in refused("--data.train_file=null", f"--data.dataset={empty}")


@pytest.mark.parametrize(
    "text", ["The inn was fine. " * 600_000, "a" * 10_000_000, "€" * 5_000_000], ids=["w", "a", "€"]
)
def test_a_text_of_ten_megabytes(refused: Refused, tmp_path: Path, text: str) -> None:
    file = jsonl(tmp_path / "a.jsonl", [*GOOD, {"sentence": text, "label": 0}])
    start = time.perf_counter()
    said = refused(f"--data.train_file={file}")
    assert "record 33" in said
    assert "128 tokens" in said
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("masked", [False, True])
def test_a_text_of_ten_megabytes_is_cut(tmp_path: Path, masked: bool) -> None:
    """The prompt is then that of the end of the text."""
    folder = tmp_path / "model"
    shutil.copytree(quickstart.MODEL, folder)
    if masked:
        RobertaConfig(architectures=["RobertaForMaskedLM"], max_position_embeddings=130).save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
        tokenizer.save_pretrained(folder)
    words = ["The inn was fine"] * 600_000
    rows = [{"sentence": ". ".join(some), "label": 0} for some in (words, words[:2000])]
    task = Classification(label_words={"0": " a", "1": " b"})
    options = {"name_or_path": str(folder), "train_file": str(jsonl(tmp_path / "a.jsonl", rows)), "task": task}
    start = time.perf_counter()
    data = PromptedData(**options, batch_size=1, too_long="cut")
    data.setup("fit")
    long, short = data._encoded["train"].prompts
    assert long.tolist() == short.tolist()
    assert len(long) == 128
    assert time.perf_counter() - start < 5


def test_an_answer_of_ten_megabytes(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"q": "a", "x": "b " * 5_000_000, "y": "c", "label": 0}])
    task = MultipleChoice("{q}", ["x", "y"])
    data = PromptedData(name_or_path=str(quickstart.MODEL), train_file=str(file), task=task, too_long="cut")
    with pytest.raises(UserError, match=r"record 1 of .*a.jsonl has an answer of 10000001 characters: shorten it"):
        data.setup("fit")
