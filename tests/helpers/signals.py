"""A signal handler that records, and the restoration of handlers after a test."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

USR1, USR2, INT, TERM = signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGTERM


class Recorder:
    """A handler that records the signals it receives."""

    def __init__(self, *signums: int) -> None:
        self.received: list[int] = []
        for signum in signums:
            signal.signal(signum, self)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        assert frame is not None
        assert signal.getsignal(signum) is self  # handlers are back before the first is called
        self.received.append(signum)

    def __deepcopy__(self, memo: object) -> None:
        raise AssertionError


@contextmanager
def restored_handlers() -> Iterator[None]:
    """Restores the handlers of the signals that tests raise."""
    before = {signum: signal.getsignal(signum) for signum in (USR1, USR2, INT, TERM)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
