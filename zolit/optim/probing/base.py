"""Stage 3 of a step: computes the losses at θ + Σ cᵢuᵢ."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from zolit.optim.base_point import Closure
from zolit.optim.perturbation.directions import Directions
from zolit.optim.stage import Stage


class Prober(Stage):
    """Evaluates a closure at perturbed weights.

    Attributes:
        per_example: Whether each example has a separate direction.
        rounds_weights: Whether perturbed weights are rounded to the type of the weights.
        batch_repeats: Number of copies of the batch that the closure must evaluate in the current forward, 1 or 2. For
            2 the closure repeats its batch along the first dimension, and returns the loss of each example, shape
            (batch_repeats·batch,).
    """

    per_example: ClassVar[bool] = False
    rounds_weights: ClassVar[bool] = True
    batch_repeats: int = 1

    @abstractmethod
    def losses(self, closure: Closure, directions: Directions, queries: Tensor, repeats_batch: bool = False) -> Tensor:
        """Computes the mean losses at θ + Σᵢ C[q, i]·uᵢ. Called by ``Evaluation``, if it does not know all losses.

        Afterwards θ has the same values as before, also if the closure raises an exception.

        Args:
            closure: See ``Closure``.
            directions: u_1 ... u_k.
            queries: C, shape (queries, k), on the CPU.
            repeats_batch: Whether the closure repeats its batch ``batch_repeats`` times.

        Returns:
            Shape (queries,), float32 or wider, on the device of the loss, so that the host does not wait. For
            per-example directions, shape (queries, batch).
        """
