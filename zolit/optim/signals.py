"""Defers signals while weights are perturbed or half updated.

Python runs the handler of a signal between any two bytecodes of the main thread. A handler may save a checkpoint, as
Lightning's automatic requeue under SLURM does. In the middle of a step it would save weights that are perturbed or half
updated.
"""

from __future__ import annotations

import inspect
import signal
import threading

# The functions of ``signal`` convert numbers to enums. With them, reading all handlers takes ten times as long.
from _signal import getsignal  # type: ignore[import-not-found]
from _signal import signal as install
from collections.abc import Callable
from types import FrameType
from typing import Any, Self, TypeVar

T = TypeVar("T")
_SIGNALS = tuple(int(signum) for signum in signal.valid_signals())


class deferred_signals:
    """Defers signals for the time of a context, and calls their handlers at its end. Used around each step.

    The context replaces every handler that is a Python callable. At its end, also after an exception, it restores the
    handlers. It then calls the handlers of the signals that arrived, each once, in the order of arrival. A handler that
    other code installed within the context stays. Contexts may be nested: the inner context leaves a signal that an
    outer context defers to the outer context.

    Signals without a Python handler act as usual. A handler with a true attribute ``acts_at_once`` is not deferred: it
    only notes the signal. Only the main thread runs handlers and may replace them, so in other
    threads the context does nothing. Use each object for one ``with`` only.

    Args:
        interrupts: Whether to defer Ctrl-C too, if its handler is Python's default. By default Ctrl-C raises
            KeyboardInterrupt at once. A second Ctrl-C is never deferred.
    """

    def __init__(self, interrupts: bool = False) -> None:
        self._interrupts = interrupts
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._arrived: list[int] = []
        self._open = False

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        for signum in _SIGNALS:
            handler = getsignal(signum)
            if callable(handler) and not self._leaves(handler):
                self._handlers[signum] = handler
                install(signum, self)
        # Set last, and cleared first in __exit__: while handlers are swapped, a signal goes straight to its handler.
        self._open = True
        return self

    def acting_during(self, function: Callable[[], T]) -> Callable[[], T]:
        """Returns the function so that signals which this context defers act at once while it runs.

        Used for the closure of a step: the forwards take most of the time, and move no weight.
        """

        def acting() -> T:
            was_open, self._open = self._open, False
            try:
                self._hand_over()
                return function()
            finally:
                self._open = was_open

        return acting

    def _leaves(self, handler: object) -> bool:
        if isinstance(handler, deferred_signals):
            return handler._open
        if getattr(handler, "acts_at_once", False):
            return True
        return handler is signal.default_int_handler and not self._interrupts

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Records a signal, or calls its handler at once. Python calls this as the handler of each deferred signal."""
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
            finally:  # if a handler raises, the other handlers are called all the same
                self._hand_over()

    def __reduce__(self) -> tuple[Any, ...]:
        # Handlers refer to the trainer. A copy of a module must not copy the trainer too.
        return deferred_signals, (self._interrupts,)
