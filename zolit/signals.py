"""Signals that wait for whole weights.

Python runs a signal's handler between any two bytecodes of the main thread, so one that saves a checkpoint, as
Lightning's automatic requeue under SLURM does, may find the weights perturbed or half updated.
"""

from __future__ import annotations

import inspect
import signal
import threading

# The functions of ``signal`` wrap these and make enums of numbers: with them a scan takes ten times as long.
from _signal import getsignal  # type: ignore[import-not-found]
from _signal import signal as install
from collections.abc import Callable
from types import FrameType
from typing import Any

_SIGNALS = tuple(int(signum) for signum in signal.valid_signals())


class deferred_signals:
    """Context manager that keeps signals back from their Python handlers and hands them over when it is left.

    Every handler that is a Python callable is replaced. On leaving, also by an exception, handlers are put back, and
    those whose signal arrived are called, each once, in the order of arrival. A handler that somebody installed
    meanwhile stays. Contexts may be nested: what an outer one keeps back already is left to it.

    Signals without a Python handler do what they always do. In other threads than the main one, which alone runs and
    may replace handlers, the context does nothing. An object serves one ``with``.

    Args:
        interrupts: Whether to keep back Ctrl-C where it is a mere KeyboardInterrupt. By default it is not: it is raised
            at once, an exception like any other. A second Ctrl-C is never kept back.
    """

    def __init__(self, interrupts: bool = False) -> None:
        self._interrupts = interrupts
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._arrived: list[int] = []
        self._open = False

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in _SIGNALS:
            handler = getsignal(signum)
            if callable(handler) and not self._leaves(handler):
                self._handlers[signum] = handler
                install(signum, self)
        # Last, and first on leaving: interrupted in between, this object passes on what it should not have got.
        self._open = True

    def _leaves(self, handler: object) -> bool:
        if isinstance(handler, deferred_signals):
            return handler._open
        return handler is signal.default_int_handler and not self._interrupts

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Stands for the handlers."""
        known = signum in self._arrived
        if not self._open or (known and signum == signal.SIGINT):
            self._handlers[signum](signum, frame)
        elif not known:
            self._arrived.append(signum)

    def __exit__(self, *_: object) -> None:
        self._open = False
        for signum, handler in self._handlers.items():
            if getsignal(signum) is self:
                install(signum, handler)
        self._hand_over()

    def _hand_over(self) -> None:
        if self._arrived:
            signum = self._arrived.pop(0)
            try:
                self._handlers[signum](signum, inspect.currentframe())
            finally:  # one that raises does not swallow the others
                self._hand_over()

    def __reduce__(self) -> tuple[Any, ...]:
        # Handlers lead to the trainer and beyond; the copy of a module takes none of that along.
        return deferred_signals, (self._interrupts,)
