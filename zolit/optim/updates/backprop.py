"""Trains some or all weights by backpropagation, and the other weights by another update."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import Tensor, nn

from zolit.errors import require
from zolit.optim.base_point import BasePoint
from zolit.optim.blocks import Block, Weight
from zolit.optim.randomness import Step
from zolit.optim.updates.adam import Adam
from zolit.optim.updates.base import Update
from zolit.optim.updates.gradient import Gradient


class Backprop(Update):
    """Applies Adam to true gradients, which a backward pass in ``prepare`` computes.

    Args:
        adam: Moves the first-order weights.
        chosen: Returns the first-order weights; None is all weights.
        rest: Moves the other weights by the gradient estimate; None does not move them.
        share: Factor of the learning rate of the other weights.

    Raises:
        UserError: If ``rest`` would move no weight.
    """

    def __init__(
        self,
        adam: Adam,
        chosen: Callable[[BasePoint], Collection[Weight]] | None = None,
        rest: Update | None = None,
        share: float = 1.0,
    ) -> None:
        require(
            rest is None or chosen is not None,
            "rest: all weights are trained by backpropagation, so that no other weight is left; leave `rest` out, or "
            "use the method zolit.HiZFO",
        )
        self._adam = adam
        self._chosen = chosen
        self._rest = rest
        self._share = share
        self._gradients: dict[Weight, Tensor] = {}
        self.backprop_is_chosen = chosen is not None
        self.uses_estimate = rest is not None

    def bind(self, model: nn.Module, weights: Sequence[Weight], blocks: Sequence[Block]) -> None:
        """Stores the trainable weights; see ``Stage.bind``."""
        self._weights = list(weights)
        if self._rest is not None:
            self._rest.bind(model, weights, blocks)

    def prepare(self, base: BasePoint) -> None:
        """Computes the gradients of the first-order weights at θ; see ``Stage.prepare``."""
        if self._rest is not None:
            self._rest.prepare(base)
        chosen = self._weights if self._chosen is None else self._chosen(base)
        if chosen:
            self._gradients = base.gradients([weight for weight in self._weights if weight in chosen])

    def rollback(self) -> None:
        """Drops the gradients; see ``Update.rollback``."""
        self._gradients = {}
        if self._rest is not None:
            self._rest.rollback()

    def apply(self, weights: Sequence[Weight], gradient: Gradient, lr: float, step: Step) -> None:
        """Moves first-order weights by their gradients, and others by the estimate; see ``Update.apply``."""
        self._adam.begin_step()
        first_order, self._gradients = self._gradients, {}
        if self._rest is not None:
            others = [weight for weight in weights if weight not in first_order]
            self._rest.apply(others, gradient, lr * self._share, step)
        for weight in list(first_order):
            own = first_order.pop(weight).flatten()
            for start, stop in gradient.directions.chunks(weight):
                self._adam.move(weight, own[start:stop].float(), start, stop, lr, step)

    def scratch_bytes(self) -> int:
        """Returns the bytes of the gradients and of both updates; see ``Stage.scratch_bytes``."""
        held = sum(gradient.nbytes for gradient in self._gradients.values())
        return held + self._adam.scratch_bytes() + (self._rest.scratch_bytes() if self._rest else 0)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of both updates; see ``Stage.state_dict``."""
        return {"adam": self._adam.state_dict(), "rest": self._rest.state_dict() if self._rest else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of both updates; see ``Stage.load_state_dict``."""
        self._adam.load_state_dict(state["adam"])
        if self._rest is not None:
            self._rest.load_state_dict(state["rest"])
