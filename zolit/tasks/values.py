"""Reads the values of records as text; a value that is no text is refused and not shown to a model as its repr."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from decimal import Decimal

from zolit.errors import UserError

_TEXTS = (str, int, float, Decimal, datetime.date, datetime.time)  # bool is an int


def text_of(value: object, column: str) -> str:
    """Returns a text, number, boolean, date or time as text.

    Args:
        value: A value of a record.
        column: Its column, for the message.

    Raises:
        UserError: If the value is of another type (a list, bytes, null), is NaN or infinite, or holds a character that
            no file of text has. The message continues after the record's name.
    """
    if not isinstance(value, _TEXTS):
        kind = {"NoneType": "null", "dict": "an object"}.get(type(value).__name__, f"a value of type {_kind(value)}")
        raise UserError(f"has {kind} in the column {column!r}, where a text or a number belongs")
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        raise UserError(f"has the number {value} in the column {column!r}, where a text or a finite number belongs")
    text = str(value)
    if "\0" in text:
        raise UserError(f"has a NUL character in the column {column!r}; the file may be damaged")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = text[error.start]
            raise UserError(
                f"has {half!r} in the column {column!r}, which is half of a character; write both halves"
            ) from None
    return text


def labels_of(value: object) -> tuple[str, ...]:
    """Returns the texts that stand for a label, the likeliest first.

    Tools write one label in several ways: a whole number as 1.0, and a boolean as True, true or 1.
    """
    if isinstance(value, bool):
        return str(value), str(value).lower(), str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(value), str(int(value))
    return (str(value),)


def texts_of(value: object, column: str) -> tuple[str, ...]:
    """Returns a list of texts; see :func:`text_of`."""
    if not isinstance(value, list | tuple):
        raise UserError(f"has a value of type {_kind(value)} in the column {column!r}, where a list of texts belongs")
    return tuple(text_of(part, column) for part in value)


def texts_under(value: object, key: str, column: str) -> tuple[str, ...]:
    """Returns the list of texts under a key of an object, as SQuAD has answers; () for null or without the key."""
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise UserError(
            f"has a value of type {_kind(value)} in the column {column!r}, where {{{key!r}: [...]}} belongs"
        )
    return texts_of(value.get(key, ()), column)


def _kind(value: object) -> str:
    return type(value).__name__
