"""First-order training of some weights, or all, beside or instead of the zeroth-order kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import Tensor

from zolit.blocks import Weight
from zolit.closure import Look
from zolit.directions import Directions
from zolit.updates.adam import Adam
from zolit.updates.base import Update


class Backprop(Update):
    """Adam, given gradients that a backward pass found before the step.

    Args:
        adam: How weights move.
        chosen: Tells which weights; None is all of them.
        rest: What moves the others along the step's directions; None leaves them where they are.
        share: What the others' learning rate is multiplied by.
    """

    def __init__(
        self,
        adam: Adam,
        chosen: Callable[[Look], Collection[Weight]] | None = None,
        rest: Update | None = None,
        share: float = 1.0,
    ) -> None:
        self._adam = adam
        self._chosen = chosen
        self._rest = rest
        self._share = share
        self._gradients: dict[Weight, Tensor] = {}

    def bind(self, weights: Sequence[Weight]) -> None:
        """Takes all trainable weights; see the base class."""
        self._weights = list(weights)

    def prepare(self, look: Look) -> None:
        """Finds the gradients; see the base class."""
        chosen = self._weights if self._chosen is None else self._chosen(look)
        if chosen:
            self._gradients = look.gradients([weight for weight in self._weights if weight in chosen])

    def abandon(self) -> None:
        """Forgets the gradients; see the base class."""
        self._gradients = {}

    def apply(
        self, weights: Sequence[Weight], directions: Directions, coefficients: Sequence[float], lr: float, key: int
    ) -> None:
        """Makes one step; see the base class."""
        self._adam.begin_step()
        first_order, self._gradients = self._gradients, {}
        if self._rest is not None:
            others = [weight for weight in weights if weight not in first_order]
            self._rest.apply(others, directions, coefficients, lr * self._share, key)
        for weight in list(first_order):
            gradient = first_order.pop(weight).flatten()
            for start, stop in directions.ranges(weight):
                self._adam.move(weight, gradient[start:stop].float(), start, stop, lr, key)

    def scratch_bytes(self) -> int:
        """Returns the bytes of the averages, of the gradients and of what the others take."""
        held = sum(gradient.nbytes for gradient in self._gradients.values())
        return held + self._adam.scratch_bytes() + (self._rest.scratch_bytes() if self._rest else 0)

    def state_dict(self) -> dict[str, Any]:
        """Returns both updates' states."""
        return {"adam": self._adam.state_dict(), "rest": self._rest.state_dict() if self._rest else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes them up."""
        self._adam.load_state_dict(state["adam"])
        if self._rest is not None:
            self._rest.load_state_dict(state["rest"])
