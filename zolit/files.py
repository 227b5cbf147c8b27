"""Writes files and folders so that what lies under a true name is always whole."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(target: str | Path) -> Iterator[Path]:
    """Provides a temporary path beside the target, and renames it to the target when the block ends without an error.

    A rename within a folder is one operation of the file system: a process that is killed at any moment leaves the old
    content or the new one. What the block writes reaches the disk before the rename. The block may write a file, or
    create a folder. A folder can only take the place of an empty folder, or of none. Temporary files that killed
    processes left for the same target are removed.

    Args:
        target: The file or folder to write. Folders above it are created.

    Yields:
        The temporary path, at which nothing exists.

    Raises:
        OSError: If the block or the rename fails. The temporary file is removed, and the target is as before.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        _remove(leftover)
    temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            _sync(path)
        temporary.replace(target)
    except BaseException:
        _remove(temporary)
        raise
    _sync(target.parent)


def write_text(target: str | Path, text: str) -> None:
    """Writes a text file whole, in UTF-8; see ``replacing``."""
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_json(value: Any, indent: int | None = None) -> str:
    """Returns a value as JSON. JSON has no NaN and no infinity, so these numbers become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def write_json(target: str | Path, value: Any) -> None:
    """Writes a value as a JSON file, whole; see ``to_json`` and ``replacing``."""
    write_text(target, to_json(value, indent=2) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Writes a file, or the names in a folder, to the disk. Only POSIX systems can open a folder for this."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
