"""The third room: how are the losses at θ + Σ cᵢuᵢ obtained?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from zolit.blocks import Weight
from zolit.closure import Closure
from zolit.directions import Directions


class Prober(ABC):
    """Evaluates a closure at perturbed weights.

    Attributes:
        copies: How often the closure is to repeat its batch along the first dimension, in the forward that it is
            called for now; it then answers with each example's loss, shape (copies·batch,).
    """

    copies: int = 1

    def bind(self, model: nn.Module, weights: Sequence[Weight]) -> None:
        """Takes the model whose weights are perturbed; called once, by the optimizer.

        Args:
            model: The model.
            weights: All of its trainable weights.
        """

    @abstractmethod
    def losses(self, closure: Closure, directions: Directions, queries: Tensor) -> Tensor:
        """Returns the mean losses at θ + Σᵢ C[q, i]·uᵢ, and leaves θ as it was, also if the closure raises.

        Args:
            closure: See ``Closure``.
            directions: u_1 ... u_k.
            queries: C, shape (queries, k), on the CPU.

        Returns:
            Shape (queries,), float32 or wider, on the loss's device: nothing is waited for. Where every example has a
            direction of its own, (queries, batch).
        """

    @abstractmethod
    def scratch_bytes(self) -> int:
        """Returns the most bytes that a probe has held beside the weights."""
