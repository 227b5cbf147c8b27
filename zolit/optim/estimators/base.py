"""Stage 4 of a step: computes from a few losses how far the weights move along each direction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from zolit.optim.stage import Stage

Evaluate = Callable[[Tensor], Tensor]
"""Takes C, shape (queries, k), and returns the losses at θ + Σᵢ C[q, i]·uᵢ, shape (queries,), float64, on the CPU.

The optimizer passes a ``zolit.optim.evaluation.Evaluation``.
"""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The gradient estimate of a step over its k directions. ``Estimator.estimate`` returns it.

    Attributes:
        coefficients: a, shape (k,). The gradient estimate is Σ aᵢuᵢ.
        derivatives: Δ, the derivative of the loss along each direction, shape (k,).
        curvatures: The second derivative of the loss along each direction, shape (k,); None if it was not measured.
    """

    coefficients: Tensor
    derivatives: Tensor
    curvatures: Tensor | None = None


class Estimator(Stage):
    """Computes the coefficients of the directions from losses that it asks for.

    Attributes:
        num_directions: k, the number of directions that all examples share. Ignored if ``per_example`` is true.
        probes: Whether the estimator measures losses along the directions.
        measures_curvatures: Whether the estimate has curvatures.
        per_example: Whether each example has a separate direction. C then has shape (queries, 1), example i is
            evaluated at θ + C[q, 0]·uᵢ, the losses have shape (queries, batch), and k is the number of examples.
    """

    num_directions: int = 1
    per_example: ClassVar[bool] = False
    probes: ClassVar[bool] = True
    measures_curvatures: ClassVar[bool] = False

    @abstractmethod
    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Estimates the gradient along the directions of the step. Called once a step, after they are known.

        It is not called if a loss in ``Stage.prepare`` is not finite.

        Args:
            evaluate: The only access to the loss. The queries of one call are independent of each other. A row of zeros
                asks for the loss at θ. It costs no forward if this loss was measured before in this step.
            eps: ε, the probe radius.
        """
