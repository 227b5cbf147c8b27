"""Stage 5 of a step: moves the weights by the gradient estimate Σ aᵢûᵢ."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from zolit.optim.blocks import Weight
from zolit.optim.randomness import Step
from zolit.optim.stage import Stage
from zolit.optim.updates.gradient import Gradient


class Update(Stage):
    """Moves the weights. ``prepare`` may move θ too; ``rollback`` then undoes this, except in ``FusedBackprop``.

    Attributes:
        uses_estimate: Whether weights move by the gradient estimate. If not, the update has gradients of its own.
        needs_answers: Whether ``step`` must be told the correct answers of the batch.
        needs_row_losses: Whether a closure whose losses have no gradient must return one for each row of a forward.
        backprop_is_chosen: Whether the selection says which weights are trained by backpropagation.
        reach: The sum of what one estimate adds to the weights over all later steps, in units of the learning rate.
            None if it depends on more than the estimate, as in Adam.
    """

    uses_estimate: bool = True
    needs_answers: bool = False
    needs_row_losses: bool = False
    backprop_is_chosen: bool = False
    reach: float | None = None

    @abstractmethod
    def apply(self, weights: Sequence[Weight], gradient: Gradient, lr: float, step: Step) -> None:
        """Moves the weights by one step. Called once a step, after the estimate; not called if the step is skipped.

        Args:
            weights: All trainable weights that this process holds.
            gradient: The gradient estimate.
            lr: The learning rate.
            step: The step. Keys of random choices, such as rounding, are hashed from it.
        """

    def rollback(self) -> None:
        """Undoes what ``prepare`` did. Called instead of ``apply`` if the step is skipped."""
