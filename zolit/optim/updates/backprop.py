"""Trains some or all weights by backpropagation, and the other weights by another update."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import Tensor, nn

from zolit.errors import require
from zolit.optim.arrivals import reader
from zolit.optim.base_point import BasePoint
from zolit.optim.blocks import Block, Weight
from zolit.optim.randomness import Step
from zolit.optim.updates.base import Update
from zolit.optim.updates.gradient import Gradient
from zolit.optim.updates.rule import Rule, signature_of, state_of_rule


class Backprop(Update):
    """Moves weights by true gradients, which a backward pass in ``prepare`` computes and keeps.

    Args:
        rule: Moves a first-order weight by its gradient.
        chosen: Returns the first-order weights; None is all weights.
        rest: Moves the other weights by the gradient estimate; None does not move them.
        share: Factor of the learning rate of the other weights.
        recompute: Whether the backward pass computes layers again, so that their activations are not kept.

    Raises:
        UserError: If ``rest`` would move no weight.
    """

    def __init__(
        self,
        rule: Rule,
        chosen: Callable[[BasePoint], Collection[Weight]] | None = None,
        rest: Update | None = None,
        share: float = 1.0,
        recompute: bool = False,
    ) -> None:
        require(
            rest is None or chosen is not None,
            "rest: all weights are trained by backpropagation, so that no other weight is left; leave `rest` out, or "
            "use the method zolit.HiZFO",
        )
        self._rule = rule
        self._chosen = chosen
        self._rest = rest
        self._share = share
        self._recompute = recompute
        self._gradients: dict[Weight, Tensor] = {}
        self.backprop_is_chosen = chosen is not None
        self.uses_estimate = rest is not None

    @property
    def signature(self) -> str:
        """The name of the rule too; see ``Stage.signature``."""
        return signature_of(self._rule)

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
            wanted = [weight for weight in self._weights if weight in chosen]
            self._gradients = base.gradients(wanted, self._recompute)

    def rollback(self) -> None:
        """Drops the gradients; see ``Update.rollback``."""
        self._gradients = {}
        if self._rest is not None:
            self._rest.rollback()

    def apply(self, weights: Sequence[Weight], gradient: Gradient, lr: float, step: Step) -> None:
        """Moves first-order weights by their gradients, and others by the estimate; see ``Update.apply``."""
        self._rule.begin_step()
        first_order, self._gradients = self._gradients, {}
        if self._rest is not None:
            others = [weight for weight in weights if weight not in first_order]
            self._rest.apply(others, gradient, lr * self._share, step)
        for weight in list(first_order):
            read = reader(first_order.pop(weight).flatten())
            self._rule.descend(weight, read, gradient.directions.chunks(weight), lr, step)

    def scratch_bytes(self) -> int:
        """Returns the bytes of the gradients and of both updates; see ``Stage.scratch_bytes``."""
        held = sum(gradient.nbytes for gradient in self._gradients.values())
        return held + self._rule.scratch_bytes() + (self._rest.scratch_bytes() if self._rest else 0)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of both updates; see ``Stage.state_dict``."""
        return {"rule": self._rule.state_dict(), "rest": self._rest.state_dict() if self._rest else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of both updates; see ``Stage.load_state_dict``."""
        self._rule.load_state_dict(state_of_rule(state))
        if self._rest is not None:
            self._rest.load_state_dict(state["rest"])
