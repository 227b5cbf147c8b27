"""What the processes of a run tell one another; one that is alone keeps to itself."""

from __future__ import annotations

from torch import Tensor

from zolit.blocks import Weight


class Ranks:
    """One process. ``zolit.strategies.ProcessRanks`` is many.

    Attributes:
        size: How many have examples of their own.
        split: Whether they share out the weights.
    """

    size = 1
    split = False

    def mean(self, own: Tensor) -> Tensor:
        """Returns the mean of what all ranks have, in place where they are many; any shape."""
        return own

    def gather(self, own: Tensor) -> Tensor:
        """Returns what all ranks have for their examples, in a row: (..., batch) becomes (..., ranks·batch)."""
        return own

    def first(self, own: Tensor) -> Tensor:
        """Returns what the first rank has, in place where they are many; any shape."""
        return own

    def counts(self, weight: Weight) -> bool:
        """Tells whether what this rank measures of a weight's directions goes into ``total``, or another's does."""
        return True

    def total(self, own: Tensor) -> Tensor:
        """Returns the sum of what ranks that share out the weights have measured, in place; any shape."""
        return own
