"""How a weight moves by its gradient: the interface of the rules that backpropagation and direct feedback can use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from zolit.optim.arrivals import Read
from zolit.optim.blocks import Weight
from zolit.optim.randomness import Step

Chunks = Sequence[tuple[int, int]]
"""The (start, stop) of the pieces of a weight."""


class Rule(Protocol):
    """Moves one weight at a time by its gradient. ``SGD``, ``Adam`` and ``Factored`` are such rules."""

    def begin_step(self) -> None:
        """Counts a step. Called once a step, before the first ``descend``; not called if no weight moves."""

    def descend(self, weight: Weight, read: Read, chunks: Chunks, lr: float, step: Step) -> None:
        """Moves a weight. Called once a step for each weight.

        Args:
            weight: The weight.
            read: Returns a piece of the gradient in float32, valid until the next call. It may be called again.
            chunks: The pieces in which the weight is best processed.
            lr: The learning rate.
            step: The step. Keys of rounding are hashed from it.
        """

    def scratch_bytes(self) -> int:
        """Returns the bytes of state and buffers; see ``Stage.scratch_bytes``."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state; see ``Stage.state_dict``."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state; see ``Stage.load_state_dict``."""


def signature_of(rule: Rule, update: str = "Backprop") -> str:
    """Returns the signature of an update with this rule; see ``Stage.signature``. ``FusedBackprop`` is "Backprop"."""
    name = type(rule).__name__
    return update if name == "Adam" else f"{update} by {name}"


def state_of_rule(state: dict[str, Any]) -> dict[str, Any]:
    """Returns the state of the rule in the state of an update."""
    found: dict[str, Any] = state["rule"] if "rule" in state else state["adam"]  # the name before there were rules
    return found
