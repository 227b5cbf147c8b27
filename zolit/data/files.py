"""Reads records from jsonl, csv and parquet files; errors name the line or the record.

Text files are read here rather than by the ``datasets`` library, for three reasons. Nothing is cached, so changes of a
file take effect and the home folder may be read-only. A csv cell stays text. An error can name the line.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow.parquet  # type: ignore[import-untyped]

from zolit.data.records import Records
from zolit.errors import UserError
from zolit.reason import reason

Table = tuple[list[str], list[dict[str, Any]]]
"""The names of the columns, and the records."""


def read_file(path: str) -> Records:
    """Reads a jsonl, csv or parquet file.

    Raises:
        UserError: If the file is missing, cannot be read, has another format, is malformed or is empty.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    try:
        file = Path(path).expanduser()
        if file.is_dir():
            raise UserError(f"{path} is a folder: name a file, or the folder of a saved data set in --data.dataset")
        if not file.is_file():
            raise UserError(f"there is no file {path}")
        if file.suffix not in readers:
            raise UserError(f"{path} has an unknown format: its name must end in {', '.join(readers)}")
        columns, rows = readers[file.suffix](file)
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{_undecodable(file)}: save the file as UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # readers raise anything for the file of a stranger
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    return Records.of(path, columns, rows)


def _undecodable(file: Path) -> str:
    """Returns where a file has its first character that is no UTF-8; a decoder counts from the start of a chunk."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"line {number} of {file} is not UTF-8 text at byte {error.start + 1} of the line"
    return f"{file} is not UTF-8 text"


class _TwiceError(Exception):
    """Raised for an object in JSON with a name twice, of which Python would keep the last."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return found


def _read_jsonl(file: Path) -> Table:
    rows = []
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(_without_nul(file, lines), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_unique)
            except _TwiceError as error:
                raise UserError(f"line {number} of {file} has the name {error.args[0]!r} twice in an object") from None
            except json.JSONDecodeError as error:
                raise UserError(f"line {number} of {file} is not valid JSON: {error.msg}") from None
            except RecursionError:
                raise UserError(f"line {number} of {file} is JSON with too many brackets within brackets") from None
            except ValueError:  # Python's limit
                raise UserError(f"line {number} of {file} is JSON with a number of thousands of digits") from None
            if not isinstance(row, dict):
                raise UserError(f"line {number} of {file} is not a JSON object of column names and values")
            rows.append(row)
    columns = dict.fromkeys(name for row in rows for name in row)
    return list(columns), rows


def _read_csv(file: Path) -> Table:
    csv.field_size_limit(sys.maxsize)  # a cell may hold a book; Python's limit is 128 KiB
    with file.open(encoding="utf-8-sig", newline="") as content:
        reader = csv.DictReader(_without_nul(file, content), strict=True)  # else an open quote takes in the other lines
        try:
            rows = list(reader)
        except csv.Error as error:
            raise UserError(f"{file} is not valid csv after line {reader.line_num}: {error}") from None
    for number, row in enumerate(rows, 1):
        if None in row:  # the key of the surplus cells in DictReader
            raise UserError(f"record {number} of {file} has more cells than the header: quote texts with commas")
    return list(reader.fieldnames or ()), rows


def _without_nul(file: Path, lines: TextIO) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise UserError(
                f"line {number} of {file} has a NUL character: the file is damaged, or it is not UTF-8 text"
            )
        yield line


def _read_parquet(file: Path) -> Table:
    with file.open("rb") as content:  # pyarrow's read_table would add columns from the names of folders, as label=1/
        try:
            table = pyarrow.parquet.ParquetFile(content, page_checksum_verification=True).read()
            table.validate(full=True)
            return table.column_names, table.to_pylist()
        except Exception as error:  # pyarrow raises anything for a damaged file
            raise UserError(f"{file} is not valid parquet: {reason(error)}") from error
