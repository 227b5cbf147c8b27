"""The collectives by which the processes of a run exchange tensors. For one process they are identities."""

from __future__ import annotations

from torch import Tensor

from zolit.optim.blocks import Weight


class Collectives:
    """The collectives of a run with a single process. Strategies for several processes subclass it.

    A tensor may be on any device. The result is on the same device.

    Attributes:
        size: Number of processes that have different examples.
        weights_are_split: Whether each process holds only a part of the weights.
    """

    size = 1
    weights_are_split = False

    def all_mean(self, own: Tensor) -> Tensor:
        """Returns the mean of a tensor over all ranks. Called for every shared loss, and for every gradient.

        Each rank counts equally, also if the batch of one rank has fewer examples.

        Args:
            own: The tensor of this rank, of the same shape on all ranks. With several ranks it may be overwritten.
        """
        return own

    def all_gather(self, own: Tensor) -> Tensor:
        """Concatenates the examples of all ranks. Called by per-example methods, for losses, ids and directions.

        Args:
            own: The examples of this rank, shape (..., batch). The batch may differ between ranks.

        Returns:
            Shape (..., examples), rank after rank.
        """
        return own

    def broadcast(self, own: Tensor) -> Tensor:
        """Returns the tensor of the first rank. Called by stages in ``Stage.prepare``.

        Args:
            own: The tensor of this rank, of the same shape on all ranks. With several ranks it may be overwritten.
        """
        return own

    def owns(self, weight: Weight) -> bool:
        """Returns whether this rank adds the squared norm of a weight to ``all_sum``. Called by ``Gradient.add_to``.

        Exactly one rank does so for each weight.
        """
        return True

    def all_sum(self, own: Tensor) -> Tensor:
        """Returns the sum over the ranks that split the weights, of any shape. Called once a step, for ‖u_b‖²."""
        return own
