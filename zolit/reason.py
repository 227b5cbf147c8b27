"""Says in one short sentence why a file of somebody else could not be read, and which file it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LONGEST, SHORT = 200, 60  # characters
_POINTER = b"version https://git-lfs"


def reason(error: BaseException) -> str:
    """Returns the type of an error and its first line (or more, if that is short), at most about 200 characters.

    Libraries answer a damaged file with any exception, and some messages are long lists or advise to run the code that
    the file holds. Neither belongs into the sentence for the user.

    Args:
        error: What transformers, datasets, pyarrow or another library raised.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({Path(str(error.filename)).name})" if error.filename else error.strerror
    text = str(error).strip()
    if "weights_only" in text:  # torch's advice to load the file all the same
        return "it is damaged or holds code, which is never run"
    first = text.partition("\n")[0].rstrip()
    text = " ".join((text if len(first) < SHORT else first).split())
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return said if len(said) <= LONGEST else said[:LONGEST].rstrip() + " ..."


def blame(folder: str, error: BaseException, checks: Mapping[str, Callable[[Path], object]]) -> str:
    """Returns the reason of an error, with the damaged file of a folder if one is found.

    Args:
        folder: The folder that could not be read; anything else, such as a hub id, has no files to check.
        error: What a library raised.
        checks: For patterns of names, what to do with each file: an exception says that the file is damaged.
    """
    if is_folder(folder):
        for pattern, check in checks.items():
            for file in sorted(Path(folder).glob(pattern)):
                try:
                    with file.open("rb") as content:
                        if content.read(len(_POINTER)) == _POINTER:
                            return (
                                f"{file.name} is the pointer of a file in Git LFS; fetch the file with `git lfs pull`"
                            )
                    check(file)
                except Exception as damage:  # each library has its own errors
                    return f"{file.name} cannot be read: {reason(damage)}"
    return reason(error)


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raises a RuntimeError for a panic of a library in Rust, which Python has as no Exception."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # the class cannot be imported
            raise
        raise RuntimeError(str(error)) from error


def is_folder(path: str) -> bool:
    """Returns whether there is a folder; a name that is too long is none."""
    try:
        return Path(path).is_dir()
    except OSError:
        return False


def read_json_object(file: Path) -> dict[str, Any]:
    """Reads a file that holds one object of JSON.

    Raises:
        ValueError: If the file is not a JSON object.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content
