"""What the processes of a run tell one another; one that is alone keeps to itself."""

from __future__ import annotations

from torch import Tensor


class Ranks:
    """One process. ``zolit.strategies.ProcessRanks`` is many.

    Attributes:
        size: How many there are.
    """

    size = 1

    def mean(self, own: Tensor) -> Tensor:
        """Returns the mean of what all ranks have, in place where they are many; any shape."""
        return own

    def gather(self, own: Tensor) -> Tensor:
        """Returns what all ranks have for their examples, in a row: (..., batch) becomes (..., ranks·batch)."""
        return own

    def first(self, own: Tensor) -> Tensor:
        """Returns what the first rank has, in place where they are many; any shape."""
        return own
