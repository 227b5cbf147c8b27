"""Turns what Lightning and other libraries raise for the value of an option into one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback

from zolit.errors import DivergedError, NonFiniteLossError, UserError
from zolit.reason import reason


@contextmanager
def explained(option: str) -> Iterator[None]:
    """Raises a UserError in place of any other exception. Used where objects are made from options.

    Args:
        option: The option to name, unless the error names a class.

    Raises:
        UserError: The one that was raised, or that an exception came from, or a new one with the first cause.
    """
    try:
        yield
    except MisconfigurationException:
        raise
    except Exception as error:  # constructors of all libraries
        cause: BaseException = error
        while not isinstance(cause, UserError) and cause.__cause__ is not None:
            cause = cause.__cause__  # jsonargparse wraps what a constructor raises
        if isinstance(cause, UserError | OSError):
            raise cause from None
        named = re.search(r"class_path='([^']+)'", str(error))
        raise UserError(f"{named[1] if named else option}: {reason(cause)}") from error


def from_callback(error: Exception) -> UserError | None:
    """Returns one sentence about what a callback of Lightning raised; None if none of them raised it.

    Some callbacks of Lightning need gradients or a data module of another make. Errors of the user's own callbacks keep
    their traceback. Errors of the file system and of zolit have a sentence already.
    """
    if isinstance(error, OSError | UserError | DivergedError | NonFiniteLossError | MisconfigurationException):
        return None
    trace = error.__traceback__
    while trace is not None:
        callback = trace.tb_frame.f_locals.get("callback")
        if trace.tb_frame.f_code.co_name.startswith("_call_") and isinstance(callback, Callback):
            name = type(callback).__name__
            is_foreign = type(callback).__module__.startswith("lightning.")
            return UserError(f"trainer.callbacks: {name} cannot work here ({reason(error)})") if is_foreign else None
        trace = trace.tb_next
    return None
