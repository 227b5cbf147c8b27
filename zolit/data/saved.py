"""Reads records from data sets: on the hub, in its cache, or in a folder by ``DatasetDict.save_to_disk``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pyarrow  # type: ignore[import-untyped]

from zolit.data.records import Records
from zolit.errors import UserError
from zolit.reason import blame, read_json_object, reason

_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # arrow takes a file that ends before it as one with fewer records


def read_dataset(path: str, config: str | None, split: str, fields: Iterable[str]) -> Records:
    """Reads a split of a data set.

    Args:
        path: Hub id or folder.
        config: Configuration on the hub, if it has several.
        split: Name of the split.
        fields: The columns to read; other columns, such as images, are not read.

    Raises:
        UserError: If the data set or the split does not exist or is damaged, or the split is empty.
    """
    source = f"the split {split!r} of {path}"
    table = _saved_split(path, split) if is_saved_dataset(path) else fetch_dataset(path, config, split)
    try:
        columns = table.column_names
        rows = table.select_columns([c for c in columns if c in set(fields)]).to_list()
    except Exception as error:  # datasets and pyarrow raise anything for a damaged file
        raise UserError(f"cannot read {source}: {reason(error)}") from error
    return Records.of(source, columns, rows)


def is_saved_dataset(path: str) -> bool:
    """Returns whether a path is a folder written by ``DatasetDict.save_to_disk``."""
    try:
        return Path(path, "dataset_dict.json").is_file()
    except OSError:  # such as a name that is too long
        return False


def fetch_dataset(path: str, config: str | None, split: str | None) -> Any:
    """Loads a data set from the hub or its cache.

    Args:
        path: Hub id.
        config: Configuration on the hub, if it has several.
        split: Name of the split; None for all splits.

    Raises:
        UserError: If the data set cannot be loaded.
    """
    try:
        if Path(path, "state.json").is_file():
            raise UserError(f"{path} is a single data set without named splits: save a datasets.DatasetDict instead")
        if any(Path(path).glob("*/state.json")):
            raise UserError(f"{path} is a saved data set without its dataset_dict.json: save it again")
        return datasets.load_dataset(path, config, split=split)
    except UserError:
        raise
    except OSError as error:  # a name that is too long, or an answer of the hub
        raise UserError(f"cannot load the data set {path}: {error.strerror or reason(error)}") from error
    except Exception as error:  # not found, not reachable, a script, files of different columns, damaged files
        about = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        raise UserError(f"cannot load the data set {path}: {reason(about or error)}") from error


def _saved_split(path: str, split: str) -> Any:
    try:
        splits = read_json_object(Path(path, "dataset_dict.json"))["splits"]
        if split not in splits:
            raise UserError(f"{path} has no split {split!r}, only {', '.join(splits)}: see --data.dataset_splits")
        if not read_json_object(Path(path, split, "state.json"))["_data_files"]:  # datasets cannot load an empty split
            raise UserError(f"the split {split!r} of {path} is empty: it has no records")
        table = datasets.Dataset.load_from_disk(str(Path(path, split)))
        table.data.validate(full=True)
        for file in table.cache_files:
            with Path(file["filename"]).open("rb") as content:
                content.seek(-len(_END_OF_STREAM), os.SEEK_END)
                if content.read() != _END_OF_STREAM:
                    raise UserError(f"{file['filename']} is cut off: save the data set {path} again")
    except UserError:
        raise
    except Exception as error:  # datasets and pyarrow raise anything for a damaged file
        why = blame(path, error, {"*.json": read_json_object, "*/*.json": read_json_object, "*/*.arrow": _read_arrow})
        raise UserError(f"cannot read the saved data set {path}: {why}") from error
    return table


def _read_arrow(file: Path) -> None:
    with pyarrow.memory_map(str(file)) as content:
        pyarrow.ipc.open_stream(content).read_all()
