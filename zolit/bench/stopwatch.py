"""Where the time of a step goes: functions are replaced, for as long as one looks, by ones that stop the time."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch


def clock(device: torch.device) -> float:
    """Returns the time in seconds, once all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(device: torch.device, call: Callable[[], object]) -> float:
    """Returns how long a call takes on a device."""
    start = clock(device)
    call()
    return clock(device) - start


class Piece(NamedTuple):
    """A function that takes a part of a step's time.

    Attributes:
        owner: The object, or the class, that has it.
        name: What it is called there.
        part: What its time counts as.
    """

    owner: Any
    name: str
    part: str


class Stopwatch:
    """Adds up the time of each part; within a part, another one has its time for itself.

    Args:
        device: Whose work is waited for.

    Attributes:
        seconds: Of each part that was met.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device
        self._parts: list[str] = []
        self._since = 0.0

    @contextmanager
    def timing(self, pieces: Iterable[Piece]) -> Iterator[None]:
        """Times the pieces as long as the context lasts."""
        with ExitStack() as undo:
            for piece in pieces:
                undo.enter_context(self._replaced(piece))
            yield

    @contextmanager
    def _replaced(self, piece: Piece) -> Iterator[None]:
        original = getattr(piece.owner, piece.name)
        own = piece.name in vars(piece.owner)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._lap()
            self._parts.append(piece.part)
            try:
                return original(*args, **kwargs)
            finally:
                self._lap()
                self._parts.pop()

        setattr(piece.owner, piece.name, timed)
        try:
            yield
        finally:
            if own:
                setattr(piece.owner, piece.name, original)
            else:
                delattr(piece.owner, piece.name)

    def _lap(self) -> None:
        """Gives the time since the last lap to the innermost part."""
        now = clock(self._device)
        if self._parts:
            self.seconds[self._parts[-1]] += now - self._since
        self._since = now
