"""The fourth room: from a few losses, how far along each direction do the weights move?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Evaluate = Callable[[Tensor], Tensor]
"""Takes C, shape (queries, k); returns the losses at θ + Σᵢ C[q, i]·uᵢ, shape (queries,), float64, on the CPU."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What was found out about the k directions.

    Attributes:
        coefficients: a: the gradient estimate is Σ aᵢuᵢ, shape (k,).
        derivatives: Δ: the loss's derivative along each direction, shape (k,).
        curvatures: The loss's second derivative along each direction, shape (k,); None where it was not measured.
    """

    coefficients: Tensor
    derivatives: Tensor
    curvatures: Tensor | None = None


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
            evaluate: The only access to the loss. Queries of one call are independent of each other. A row of zeros,
                the loss at θ, costs no forward where another room has looked at it in this step.
            eps: ε, the probe radius.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs, in tensors and plain Python values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a state that ``state_dict`` returned."""
