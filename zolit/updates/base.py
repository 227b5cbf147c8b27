"""The fifth room: what is done with the gradient estimate Σ aᵢûᵢ?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from zolit.blocks import Weight
from zolit.closure import Look
from zolit.directions import Directions


class Update(ABC):
    """Moves the weights."""

    def bind(self, weights: Sequence[Weight]) -> None:
        """Takes all trainable weights; called once, by the optimizer, and they are as they were before any step."""

    def prepare(self, look: Look) -> None:
        """Does, before a step, what needs the loss: θ may be moved here.

        Args:
            look: The loss at θ as it is when it is called. A look may raise: θ must then be as it was.
        """

    def abandon(self) -> None:
        """Takes back what ``prepare`` did: the step is skipped."""

    @abstractmethod
    def apply(
        self, weights: Sequence[Weight], directions: Directions, coefficients: Sequence[float], lr: float, key: int
    ) -> None:
        """Makes one step.

        Args:
            weights: All trainable weights.
            directions: The step's directions.
            coefficients: a, shape (k,).
            lr: The learning rate.
            key: What the step's random choices, if any, are mixed from.
        """

    def scratch_bytes(self) -> int:
        """Returns the bytes that are held beside the weights."""
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs, by weight name, in tensors and plain Python values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a state that ``state_dict`` returned."""
