"""The second room: from which law is a direction drawn?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from zolit.blocks import Weight

CHUNK = 1 << 20
"""Numbers drawn at a time: the scratch of a perturbation, 4 MiB of float32, stays in a processor's cache."""


class Perturbation(ABC):
    """A law with mean 0 and covariance I, drawn anew from a key whenever it is needed and never stored.

    Subclasses draw float32 whatever the weights' type is, and by a generator of their own.
    """

    def ranges(self, weight: Weight) -> Iterator[tuple[int, int]]:
        """Yields the (start, stop) of the pieces in which a weight's direction is drawn."""
        numel = weight.parameter.numel()
        for start in range(0, numel, CHUNK):
            yield start, min(start + CHUNK, numel)

    @abstractmethod
    def draw(self, weight: Weight, key: int, start: int, stop: int) -> tuple[Tensor, float]:
        """Draws elements start to stop of the direction of a weight.

        Args:
            weight: Gives the device, and the shape to laws that need it.
            key: What the draw is for: mixed from seed, step, direction and the weight's name.
            start: First element.
            stop: One past the last element; (start, stop) is one of ``ranges(weight)``.

        Returns:
            z, shape (stop - start,), float32, valid until the next draw, and a factor f: the direction is f·z.
        """

    @abstractmethod
    def scratch_bytes(self) -> int:
        """Returns the bytes that are held for drawing."""


class Scratch:
    """A reusable buffer per device."""

    def __init__(self, numel: int, dtype: torch.dtype = torch.float32) -> None:
        self._numel = numel
        self._dtype = dtype
        self._buffers: dict[torch.device, Tensor] = {}

    def take(self, numel: int, device: torch.device) -> Tensor:
        """Returns the first ``numel`` elements of the device's buffer, uninitialized, shape (numel,)."""
        if device not in self._buffers:
            self._buffers[device] = torch.empty(self._numel, dtype=self._dtype, device=device)
        return self._buffers[device][:numel]

    def bytes(self) -> int:
        """Returns the bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self._buffers.values())


class Generators:
    """One generator per device, seeded anew for each draw."""

    def __init__(self) -> None:
        self._generators: dict[torch.device, torch.Generator] = {}

    def seeded(self, key: int, device: torch.device) -> torch.Generator:
        """Returns the device's generator at the start of the stream that the key names."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        return self._generators[device].manual_seed(key & (1 << 63) - 1)
