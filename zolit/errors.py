"""Errors whose messages are for the user."""

from __future__ import annotations

from collections.abc import Collection


class UserError(ValueError):
    """Raised when a part of the user's input cannot work: an option, a file or a record.

    The message is one clear sentence that names what is wrong and what to do. The command line prints it without a
    traceback.
    """


class NonFiniteLossError(RuntimeError):
    """Raised when too many steps in a row had a loss that is NaN or infinite."""


def require(holds: bool, sentence: str) -> None:
    """Raises a UserError with the sentence unless the condition holds."""
    if not holds:
        raise UserError(sentence)


def require_one_of(option: str, value: object, known: Collection[object]) -> None:
    """Raises a UserError unless the value is a known one. The message names the option and the known values."""
    require(value in known, f"{option}: {value!r} is none of {', '.join(map(str, known))}")
