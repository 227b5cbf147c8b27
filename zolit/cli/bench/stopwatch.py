"""Splits the time of a step into parts, by replacing functions with timed ones for the duration of a context."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch


def clock(device: torch.device) -> float:
    """Returns the time in seconds, after all work on the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(device: torch.device, call: Callable[[], object]) -> float:
    """Returns the duration of a call, including its work on the device."""
    start = clock(device)
    call()
    return clock(device) - start


class TimedFunction(NamedTuple):
    """A function whose time counts as one part of a step.

    Attributes:
        owner: The object or class that has the function.
        name: Name of the function in its owner.
        part: Name of the part.
    """

    owner: Any
    name: str
    part: str


class Stopwatch:
    """Adds up the time of each part.

    If a timed function calls another one, the inner time counts for the inner part alone.

    Args:
        device: The device whose work is timed.

    Attributes:
        seconds: Time of each part.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device
        self._parts: list[str] = []
        self._since = 0.0

    @contextmanager
    def timing(self, functions: Iterable[TimedFunction]) -> Iterator[None]:
        """Times the functions for the duration of the context."""
        with ExitStack() as undo:
            for function in functions:
                undo.enter_context(self._replaced(function))
            yield

    @contextmanager
    def _replaced(self, function: TimedFunction) -> Iterator[None]:
        original = getattr(function.owner, function.name)
        own = function.name in vars(function.owner)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._credit_elapsed()
            self._parts.append(function.part)
            try:
                return original(*args, **kwargs)
            finally:
                self._credit_elapsed()
                self._parts.pop()

        setattr(function.owner, function.name, timed)
        try:
            yield
        finally:
            if own:
                setattr(function.owner, function.name, original)
            else:
                delattr(function.owner, function.name)

    def _credit_elapsed(self) -> None:
        """Adds the time since the last call to the innermost part."""
        now = clock(self._device)
        if self._parts:
            self.seconds[self._parts[-1]] += now - self._since
        self._since = now
