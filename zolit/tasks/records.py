"""Labelled records as they come from a file or from a data set, with mistakes found and named.

The small text formats are read here rather than by the ``datasets`` library: nothing is cached (a changed file is
seen, a read-only home does not matter), a csv cell stays the text that it is, and an error can name the line.
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
        source: What messages call the place that the records are from.
        columns: Names of all columns there.
        rows: The records.
        numbers: Number of each record in its source, from 1.
    """

    source: str
    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    numbers: Sequence[int]

    def name(self, index: int) -> str:
        """What messages call a record."""
        return f"record {self.numbers[index]} of {self.source}"

    def require(self, needed: Mapping[str, Sequence[str]]) -> None:
        """Checks that every record has what options name.

        Args:
            needed: The columns that each option names, by option.

        Raises:
            UserError: If a column is not there, or a record has no value in it.
        """
        for option, columns in needed.items():
            for column in columns:
                if column not in self.columns:
                    there = ", ".join(self.columns)
                    raise UserError(f"{option} names the column {column!r}, but {self.source} has only: {there}")
                for index, row in enumerate(self.rows):
                    if row.get(column) is None:
                        raise UserError(f"{self.name(index)} has no value in the column {column!r} that {option} names")

    def subset(self, size: int | None, seed: int, option: str, skipped: int = 0) -> Records:
        """A random choice of ``size`` records in their order; a smaller choice is part of a larger one.

        Args:
            size: How many; None for all that are left.
            seed: Of the choice.
            option: What asked for them, for messages.
            skipped: How many of the choice's first records are left to another part of the data.

        Raises:
            UserError: If there are not as many.
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
        UserError: If the file is missing, of another kind, malformed or empty.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"there is no file {path}")
    if file.suffix not in readers:
        raise UserError(f"{path} is of an unknown kind: its name must end in {', '.join(readers)}")
    try:
        columns, rows = readers[file.suffix](file)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    return _checked(path, columns, rows)


def read_dataset(path: str, config: str | None, split: str, fields: Iterable[str]) -> Records:
    """Reads a split of a data set on the hub (or in its cache) or in a folder by ``DatasetDict.save_to_disk``.

    Args:
        path: Hub id or folder.
        config: Configuration on the hub, if it has several.
        split: Name of the split.
        fields: The columns to read; others (images, say) are left alone.

    Raises:
        UserError: If the data set or the split is not there, or the split is empty.
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
    """Whether this is a folder written by ``DatasetDict.save_to_disk``."""
    return Path(path, "dataset_dict.json").is_file()


def fetch_dataset(path: str, config: str | None, split: str | None) -> Any:
    """Downloads a data set from the hub, or takes it from the cache: one split, or all of them for None.

    Raises:
        UserError: If it cannot be had.
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
        if None in row:  # where DictReader puts what is left over
            raise UserError(f"record {number} of {file} has more cells than the header: quote texts that have commas")
    return list(reader.fieldnames or ()), rows


def _read_parquet(file: Path) -> tuple[list[str], list[dict[str, Any]]]:
    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} is not valid parquet: {' '.join(str(error).split())}") from None
    return table.column_names, table.to_pylist()
