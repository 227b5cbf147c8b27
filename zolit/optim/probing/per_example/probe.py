"""The state that the views of one per-example step share: the current examples and their coefficients."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor, nn

from zolit.errors import UserError, require
from zolit.optim.base_point import Closure
from zolit.optim.modules.calls import ModelCalls
from zolit.optim.perturbation.directions import Directions
from zolit.optim.perturbation.factored import Factors
from zolit.optim.probing.views import WeightView


class PerExampleProbe:
    """The state that all views of one step share: the examples of the current forward, and c.

    A weight that the closure uses outside of a call of the model belongs to the examples of the next call. Prefix
    tuning, for example, looks up the prefix before the call.

    Args:
        model: The model of the optimizer.
        directions: One direction for each example.

    Attributes:
        calls: Follows the calls of the model.
    """

    def __init__(self, model: nn.Module, directions: Directions) -> None:
        self.directions = directions
        self.calls = ModelCalls(model, self._begin_call)
        self._has_ids = directions.count > 0
        self._coefficient: float | Tensor = 0.0
        self._first = self._stop = 0
        self._early: WeightView | None = None
        self._positions: tuple[Tensor, Tensor] | None = None

    def forward(self, closure: Closure, coefficient: float | Tensor) -> Tensor:
        """Computes the loss of each example at θ + c·uᵢ. Called for each query.

        Args:
            closure: Returns the loss of each example, shape (batch,).
            coefficient: c, a number for all examples, or shape (batch,).

        Returns:
            Shape (batch,), float32 or wider.
        """
        self._first = self._stop = 0
        self._early = None
        self._coefficient = coefficient
        torch.clear_autocast_cache()
        losses = closure()
        if self._early is not None:
            refuse(self._early, "is used after the last call of the model")
        require(
            losses.ndim == 1 and len(losses) == self._stop,
            f"step: the closure must return the loss of each example, shape ({self._stop},), and call the model of the "
            f"optimizer; it returned shape {tuple(losses.shape)}",
        )
        self._require_ids(len(losses) == self.directions.count)
        return losses if losses.dtype == torch.float64 else losses.float()

    def _require_ids(self, enough: bool) -> None:
        count = self.directions.count
        require(
            enough, f"step: {count} examples are named (examples=...), but the batch has another number of examples"
        )

    def _begin_call(self, examples: int) -> None:
        """Takes the examples of a call of the model, unless a use of a weight before it has taken them."""
        if self._early is None:
            self._take(examples)
        elif examples != self.examples:
            refuse(self._early, f"is used for {self.examples} examples before a call of the model with {examples}")
        self._early = None

    def _take(self, examples: int) -> None:
        self._first, self._stop = self._stop, self._stop + examples
        if self._stop > self.directions.count:
            self._require_ids(not self._has_ids)
            self.directions.set_examples(range(self._stop))

    @property
    def examples(self) -> int:
        """Number of examples in the current call of the model."""
        return self._stop - self._first

    def begin_use(self, view: WeightView, tensor: Tensor) -> None:
        """Takes the examples of activations or ids that meet a weight between two calls. Called before each use."""
        if not self.calls.running and self._early is None:
            self._take(len(tensor))
            self._early = view

    def factors(self, view: WeightView, inputs: Tensor | None = None) -> Factors:
        """Returns the factors of the directions of the current examples over a weight, with c among the scales.

        Called by ``products`` for each use of the weight.

        Args:
            view: The view of the weight.
            inputs: The activations that a matrix multiplies, as the model passes them, shape (examples, ..., d) or
                (examples·tokens, d); None for other uses.
        """
        directions, first, stop, positions = self.directions, self._first, self._stop, None
        if inputs is not None:
            positions = self._positions_of(inputs)
            inputs = inputs.reshape(self.examples, -1, inputs.shape[-1])
        directions.see_inputs(view.weight, first, stop, inputs, positions)
        factors = directions.factors(view.weight, first, stop)
        assert factors is not None, "this prober needs a law of low rank"
        c = self._coefficient if isinstance(self._coefficient, float) else self._coefficient[first:stop, None]
        return factors._replace(scales=factors.scales * c)

    def vectors(self, view: WeightView) -> Tensor:
        """Returns θ + c·uᵢ of a vector, shape (examples, n), float32 or wider. Called by ``products``."""
        factors = self.factors(view)
        theta = view.theta if view.theta.dtype == torch.float64 else view.theta.float()
        return theta + (factors.outputs * factors.scales.unsqueeze(2))[:, 0]

    def _positions_of(self, activations: Tensor) -> Tensor | None:
        """Returns the position of each row of activations among those of its example that are no padding.

        Returns:
            Shape (examples, rows), int64, -1 on padding; None if no row is known to be padding.
        """
        kept = self.calls.kept(activations) if self.calls.running else None
        if kept is None:
            return None
        if self._positions is None or self._positions[0] is not kept:  # most layers have the same rows
            rows = kept.reshape(self.examples, -1)
            self._positions = kept, (rows.cumsum(1) - 1).masked_fill_(~rows, -1)
        return self._positions[1]

    def by_example(self, tensor: Tensor, view: WeightView, what: str) -> Tensor:
        """Reshapes activations or ids so that the first dimension is that of the examples. Called by ``products``.

        Returns:
            Shape (examples, rows of each, d) for activations, (examples, tokens) for ids.

        Raises:
            UserError: If the first dimension is neither that of the examples nor that of all their tokens.
        """
        self.begin_use(view, tensor)
        # The second length applies if the tokens of all examples are flattened.
        lengths = (self.examples, self.examples * self.calls.tokens if self.calls.running else 0)
        if tensor.ndim < 2 - (what == "embedding") or len(tensor) not in lengths:
            refuse(view, f"meets activations of shape {tuple(tensor.shape)} in {what}, not {self.examples} examples")
        return tensor.reshape(self.examples, -1, *([] if what == "embedding" else tensor.shape[-1:]))


def refuse(view: WeightView | None, why: str) -> NoReturn:
    """Refuses a weight that cannot be perturbed for each example separately. Called by ``products``.

    Raises:
        UserError: Always.
    """
    name = view.weight.name if view is not None else "a weight"
    msg = (
        f"probing: {name} {why}; a direction for each example needs activations with the examples along the first "
        "dimension, and linear, embedding or norm layers: freeze it (requires_grad=False), or take another method"
    )
    raise UserError(msg)
