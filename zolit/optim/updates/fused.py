"""Trains all weights by backpropagation, and moves each weight as soon as its gradient arrives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from zolit.optim.arrivals import Read
from zolit.optim.base_point import BasePoint
from zolit.optim.blocks import Block, Weight
from zolit.optim.buffers import chunk_size, pieces
from zolit.optim.randomness import Step
from zolit.optim.updates.base import Update
from zolit.optim.updates.gradient import Gradient
from zolit.optim.updates.rule import Rule, signature_of, state_of_rule


class FusedBackprop(Update):
    """Moves each weight during the backward pass, so that no gradient is kept (LOMO, arXiv 2306.09782).

    The weights are the same as those of ``Backprop``: to the bit, except for matrices outside of the layers, whose
    gradients are summed in another order (``ThinGradients``).

    The loss is checked before the backward pass; if it is not finite, nothing moves. A gradient that is not finite
    comes when other weights have moved. Its weight keeps its value and its state, and the step counts as skipped. On a
    GPU the host waits once for each weight to know this.

    If a batch is evaluated in parts, gradients are complete in the last part only. Those of the other parts are kept.

    Args:
        rule: Moves a weight by its gradient.
        recompute: Whether the backward pass computes layers again, so that their activations are not kept.
    """

    uses_estimate = False

    def __init__(self, rule: Rule, recompute: bool = False) -> None:
        self._rule = rule
        self._recompute = recompute

    @property
    def signature(self) -> str:
        """That of ``Backprop`` with the same rule, which can go on with the state; see ``Stage.signature``."""
        return signature_of(self._rule)

    def bind(self, model: nn.Module, weights: Sequence[Weight], blocks: Sequence[Block]) -> None:
        """Stores the trainable weights; see ``Stage.bind``."""
        self._weights = list(weights)

    def prepare(self, base: BasePoint) -> None:
        """Moves all weights; see ``Stage.prepare``. The loss is that at θ, before the first weight moves."""
        device = self._weights[0].parameter.device
        most = chunk_size(device, [weight.parameter.numel() for weight in self._weights])
        begun = False

        def receive(weight: Weight, read: Read) -> None:
            nonlocal begun
            if not begun:
                self._rule.begin_step()
                begun = True
            chunks = pieces(weight.parameter.shape, most)
            self._rule.descend(weight, read, chunks, base.lr, base.step)

        base.pass_gradients(self._weights, receive, self._recompute)

    def apply(self, weights: Sequence[Weight], gradient: Gradient, lr: float, step: Step) -> None:
        """Does nothing: the weights have moved in ``prepare``; see ``Update.apply``."""

    def scratch_bytes(self) -> int:
        """Returns the bytes of the rule; see ``Stage.scratch_bytes``."""
        return self._rule.scratch_bytes()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the rule; see ``Stage.state_dict``."""
        return {"rule": self._rule.state_dict(), "rest": {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of the rule; see ``Stage.load_state_dict``."""
        self._rule.load_state_dict(state_of_rule(state))
