"""Errors whose messages are for the user, and the end of a run by a signal."""

from __future__ import annotations

from collections.abc import Collection


class UserError(ValueError):
    """Raised when a part of the user's input cannot work: an option, a file or a record.

    The message is one clear sentence that names what is wrong and what to do. The command line prints it without a
    traceback.
    """


class NonFiniteLossError(RuntimeError):
    """Raised when too many steps in a row had a loss that is NaN or infinite."""


class DivergedError(RuntimeError):
    """Raised when weights that are about to be saved are NaN or infinite."""


class Stopped(SystemExit):
    """Raised where a run ends because of SIGINT (Ctrl-C), SIGTERM or SIGHUP (a closed terminal).

    It is a SystemExit, so that the process ends without a traceback, with the exit status of a process that this
    signal ends: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP.

    Args:
        signum: The signal.
        resumable: Whether a checkpoint that is saved now resumes exactly.

    Attributes:
        explained: Whether the user was told already what is saved.
    """

    explained = False

    def __init__(self, signum: int, resumable: bool = False) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.resumable = resumable


def require(holds: bool, sentence: str) -> None:
    """Raises a UserError with the sentence unless the condition holds."""
    if not holds:
        raise UserError(sentence)


def require_one_of(option: str, value: object, known: Collection[object]) -> None:
    """Raises a UserError unless the value is a known one. The message names the option and the known values."""
    require(value in known, f"{option}: {value!r} is none of {', '.join(map(str, known))}")
