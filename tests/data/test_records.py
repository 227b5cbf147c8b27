from __future__ import annotations

import re
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from zolit.data.files import read_file
from zolit.data.saved import read_dataset
from zolit.errors import UserError

ROWS = [{"sentence": "a, b", "label": 0}, {"sentence": "null", "label": 1}]


def test_the_formats_agree(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('\ufeff{"sentence": "a, b", "label": 0}\n\n{"sentence": "null", "label": 1}\n')
    (tmp_path / "r.csv").write_text('sentence,label\n"a, b",0\nnull,1\n')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "r.parquet")
    for kind in ("jsonl", "csv", "parquet"):
        records = read_file(str(tmp_path / f"r.{kind}"))
        assert [{key: str(value) for key, value in row.items()} for row in records.rows] == [
            {"sentence": "a, b", "label": "0"},
            {"sentence": "null", "label": "1"},
        ]
        assert list(records.columns) == ["sentence", "label"]
        assert records.name(1) == f"record 2 of {tmp_path}/r.{kind}"
    assert {file.name for file in tmp_path.iterdir()} == {"r.jsonl", "r.csv", "r.parquet"}  # no cache beside them


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    for text in ("a", "b"):
        file.write_text(f"sentence\n{text}\n")
        assert read_file(str(file)).rows == [{"sentence": text}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.txt", b"a", "r.txt has an unknown format: its name must end in .jsonl, .csv, .parquet"),
        ("r.jsonl", b'{"a": 1}\n{"a": \n', "line 2 of {path} is not valid JSON"),
        ("r.jsonl", b"[1]\n", "line 1 of {path} is not a JSON object"),
        ("r.jsonl", b"", "r.jsonl is empty"),
        ("r.csv", b"a,b\n", "r.csv is empty"),
        ("r.csv", b"a,b\nx,1\ny,z,1\n", "record 2 of {path} has more cells than the header"),
        ("r.jsonl", b'{"a": "\xff"}\n', "r.jsonl is not UTF-8 text"),
        ("r.parquet", b"PAR1 and then not", "r.parquet is not valid parquet"),
    ],
)
def test_file_mistakes(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message.replace("{path}", str(file)))) as caught:
        read_file(str(file))
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*nothing.jsonl"):
        read_file(str(tmp_path / "nothing.jsonl"))


def test_required_columns_and_values(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text('{"a": "x"}\n{"a": "y", "b": 1}\n{"b": 2}\n')
    records = read_file(str(file))
    with pytest.raises(UserError, match=r"--o names the column 'c', but .*r.jsonl has only: a, b"):
        records.require({"--o": ["c"]})
    with pytest.raises(UserError, match=r"record 3 of .*r.jsonl has no value in the column 'a' that --o names"):
        records.require({"--o": ["a"]})
    records.subset(1, 0, "--n").require({"--o": []})


@pytest.mark.parametrize("size", [200_000, 2_000_000])
def test_a_cell_may_be_long(tmp_path: Path, size: int) -> None:
    file = tmp_path / "r.csv"
    file.write_text("a,b\n" + "x" * size + ",1\n")
    assert [len(row["a"]) for row in read_file(str(file)).rows] == [size]


def test_subsets_are_seeded_and_nested(tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    file.write_text("n\n" + "".join(f"{i}\n" for i in range(1, 51)))
    records = read_file(str(file))
    small, large = records.subset(10, 0, "--n"), records.subset(30, 0, "--n")
    assert set(small.numbers) < set(large.numbers)
    assert [int(row["n"]) for row in small.rows] == list(small.numbers) == sorted(small.numbers)
    assert records.subset(10, 1, "--n").numbers != small.numbers
    assert records.subset(10, 0, "--n") == small
    with pytest.raises(UserError, match=r"--n asks for 51 examples, but .*r.csv has only 50"):
        records.subset(51, 0, "--n")


def test_saved_datasets(tmp_path: Path) -> None:
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    saved.save_to_disk(tmp_path / "saved", num_proc=None)
    records = read_dataset(str(tmp_path / "saved"), None, "train", ["label"])
    assert list(records.rows) == [{"label": 0}, {"label": 1}]
    assert list(records.columns) == ["sentence", "label"]
    with pytest.raises(UserError, match="has no split 'test', only train"):
        read_dataset(str(tmp_path / "saved"), None, "test", ["label"])
    datasets.DatasetDict({"none": datasets.Dataset.from_dict({})}).save_to_disk(tmp_path / "empty")
    with pytest.raises(UserError, match=r"the split 'none' of .*empty is empty: it has no records"):
        read_dataset(str(tmp_path / "empty"), None, "none", ["label"])
    saved["train"].save_to_disk(tmp_path / "single")
    with pytest.raises(UserError, match="a single data set without named splits"):
        read_dataset(str(tmp_path / "single"), None, "train", ["label"])
    with pytest.raises(UserError, match=r"cannot load the data set .*nothing"):
        read_dataset(str(tmp_path / "nothing"), None, "train", ["label"])
