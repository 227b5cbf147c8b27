"""Reads records from files and data sets; errors name the record, the line or the column.

Text files are read here rather than by the ``datasets`` library, for three reasons. Nothing is cached, so changes of a
file take effect and the home folder may be read-only. A csv cell stays text. An error can name the line.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]

from zolit.errors import UserError


@dataclass(frozen=True)
class Records:
    """The records of one split.

    Attributes:
        source: Name of the records' source in messages.
        columns: Names of all columns in the source.
        rows: The records.
        numbers: Number of each record in its source, from 1.
    """

    source: str
    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    numbers: Sequence[int]

    def name(self, index: int) -> str:
        """Returns the name of a record in messages."""
        return f"record {self.numbers[index]} of {self.source}"

    def require(self, needed: Mapping[str, Sequence[str]]) -> None:
        """Checks that each record has a value in each column that options name.

        Args:
            needed: The columns that each option names, by option.

        Raises:
            UserError: If a column is missing, or a record has no value in it.
        """
        for option, columns in needed.items():
            for column in columns:
                if column not in self.columns:
                    present = ", ".join(self.columns)
                    raise UserError(f"{option} names the column {column!r}, but {self.source} has only: {present}")
                for index, row in enumerate(self.rows):
                    if row.get(column) is None:
                        raise UserError(f"{self.name(index)} has no value in the column {column!r} that {option} names")

    def subset(self, size: int | None, seed: int, option: str, skipped: int = 0) -> Records:
        """Returns ``size`` random records, in their order. A smaller subset is part of a larger one with the same seed.

        Args:
            size: Number of records; None for all that remain.
            seed: Seed of the choice.
            option: The option that asks for the subset, for messages.
            skipped: Number of records at the start of the random order that another part of the data uses.

        Raises:
            UserError: If there are not enough records.
        """
        left = len(self.rows) - skipped
        if (size or 1) > left:
            taken = f", of which {skipped} are trained on" if skipped else ""
            raise UserError(
                f"{option} asks for {size or 1} examples, but {self.source} has only {len(self.rows)}{taken}"
            )
        order = random.Random(f"subset {seed}").sample(range(len(self.rows)), len(self.rows))
        chosen = sorted(order[skipped:][:size])
        return replace(self, rows=[self.rows[i] for i in chosen], numbers=[self.numbers[i] for i in chosen])


def read_file(path: str) -> Records:
    """Reads a jsonl, csv or parquet file.

    Raises:
        UserError: If the file is missing, has another format, is malformed or is empty.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"there is no file {path}")
    if file.suffix not in readers:
        raise UserError(f"{path} has an unknown format: its name must end in {', '.join(readers)}")
    try:
        columns, rows = readers[file.suffix](file)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    return _checked(path, columns, rows)


def read_dataset(path: str, config: str | None, split: str, fields: Iterable[str]) -> Records:
    """Reads a split of a data set on the hub (or in its cache), or in a folder by ``DatasetDict.save_to_disk``.

    Args:
        path: Hub id or folder.
        config: Configuration on the hub, if it has several.
        split: Name of the split.
        fields: The columns to read; other columns, such as images, are not read.

    Raises:
        UserError: If the data set or the split does not exist, or the split is empty.
    """
    source = f"the split {split!r} of {path}"
    table: Any
    if is_saved_dataset(path):
        saved = datasets.DatasetDict.load_from_disk(path)
        if split not in saved:
            raise UserError(f"{path} has no split {split!r}, only {', '.join(saved)}: see --data.dataset_splits")
        table = saved[split]
    else:
        table = fetch_dataset(path, config, split)
    columns = table.column_names
    return _checked(source, columns, table.select_columns([c for c in columns if c in set(fields)]).to_list())


def is_saved_dataset(path: str) -> bool:
    """Returns whether a path is a folder written by ``DatasetDict.save_to_disk``."""
    return Path(path, "dataset_dict.json").is_file()


def fetch_dataset(path: str, config: str | None, split: str | None) -> Any:
    """Loads a data set from the hub or its cache.

    Args:
        path: Hub id.
        config: Configuration on the hub, if it has several.
        split: Name of the split; None for all splits.

    Raises:
        UserError: If the data set cannot be loaded.
    """
    if Path(path, "state.json").is_file():
        raise UserError(f"{path} is a single data set without named splits: save a datasets.DatasetDict instead")
    try:
        return datasets.load_dataset(path, config, split=split)
    except (OSError, ValueError) as error:  # not found, not reachable, unknown configuration or split
        raise UserError(f"cannot load the data set {path}: {' '.join(str(error).split())}") from error


def _checked(source: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Records:
    if not rows:
        raise UserError(f"{source} is empty: it has no records")
    return Records(source, columns, rows, range(1, len(rows) + 1))


def _read_jsonl(file: Path) -> tuple[list[str], list[dict[str, Any]]]:
    rows = []
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"line {number} of {file} is not valid JSON: {error.msg}") from None
            if not isinstance(row, dict):
                raise UserError(f"line {number} of {file} is not a JSON object of column names and values")
            rows.append(row)
    columns = dict.fromkeys(name for row in rows for name in row)
    return list(columns), rows


def _read_csv(file: Path) -> tuple[list[str], list[dict[str, Any]]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        try:
            rows = list(reader)
        except csv.Error as error:
            raise UserError(f"{file} is not valid csv after line {reader.line_num}: {error}") from None
    for number, row in enumerate(rows, 1):
        if None in row:  # the key of the surplus cells in DictReader
            raise UserError(f"record {number} of {file} has more cells than the header: quote texts with commas")
    return list(reader.fieldnames or ()), rows


def _read_parquet(file: Path) -> tuple[list[str], list[dict[str, Any]]]:
    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} is not valid parquet: {' '.join(str(error).split())}") from None
    return table.column_names, table.to_pylist()
