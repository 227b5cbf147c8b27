"""The second room: from which law is a direction drawn?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor

from zolit.blocks import Weight
from zolit.scratch import CHUNK


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
