"""The third room: how are the losses at θ + Σ cᵢuᵢ obtained?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from zolit.directions import Directions

Closure = Callable[[], Tensor]
"""Returns a batch's mean loss, shape (), or each example's loss, shape (batch,), at the weights as they are."""


class Prober(ABC):
    """Evaluates a closure at perturbed weights."""

    @abstractmethod
    def losses(self, closure: Closure, directions: Directions, queries: Tensor) -> Tensor:
        """Returns the mean losses at θ + Σᵢ C[q, i]·uᵢ, and leaves θ as it was, also if the closure raises.

        Args:
            closure: See ``Closure``.
            directions: u_1 ... u_k.
            queries: C, shape (queries, k), on the CPU.

        Returns:
            Shape (queries,), float32 or wider, on the loss's device: nothing is waited for.
        """

    @abstractmethod
    def scratch_bytes(self) -> int:
        """Returns the most bytes that a probe has held beside the weights."""


def mean_loss(closure: Closure) -> Tensor:
    """Calls a closure and returns its mean loss, shape (), float32 or, where the closure's is, float64."""
    # Under torch.autocast, weights cast to low precision are cached and the cache does not see that they were moved.
    torch.clear_autocast_cache()
    loss = closure()
    return (loss if loss.dtype == torch.float64 else loss.float()).mean()
