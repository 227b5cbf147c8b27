"""The fourth room: from a few losses, how far along each direction do the weights move?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Evaluate = Callable[[Tensor], Tensor]
"""Takes C, shape (queries, k); returns the losses at θ + Σᵢ C[q, i]·uᵢ, shape (queries,), float64, on the CPU."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What was found out about the k directions.

    Attributes:
        coefficients: a: the gradient estimate is Σ aᵢuᵢ, shape (k,).
        derivatives: Δ: the loss's derivative along each direction, shape (k,).
    """

    coefficients: Tensor
    derivatives: Tensor


class Estimator(ABC):
    """Asks for losses and answers with coefficients.

    Attributes:
        directions: The number k of directions that it asks along; 0 where every example has a direction of its own. C
            is then of shape (queries, 1): example i sees θ + C[q, 0]·uᵢ, answers are of shape (queries, batch), and so
            k is the number of examples.
    """

    directions: int

    @abstractmethod
    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Estimates the gradient over the step's directions.

        Args:
            evaluate: The only access to the loss. Queries of one call are independent of each other.
            eps: ε, the probe radius.
        """
