"""The state that the views of one per-example step share: the current examples and their coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from zolit.errors import UserError, require
from zolit.optim.base_point import Closure
from zolit.optim.perturbation.directions import Directions
from zolit.optim.perturbation.factored import Factors
from zolit.optim.probing.views import WeightView


class PerExampleProbe:
    """The state that all views of one step share: the examples of the current forward, and c.

    Args:
        directions: One direction for each example.
    """

    def __init__(self, directions: Directions) -> None:
        self.directions = directions
        self._has_ids = directions.count > 0
        self._coefficient: float | Tensor = 0.0
        self._first = self._stop = 0
        self._positions: Tensor | None = None

    def forward(self, closure: Closure, coefficient: float | Tensor) -> Tensor:
        """Computes the loss of each example at θ + c·uᵢ. Called for each query.

        Args:
            closure: Returns the loss of each example, shape (batch,).
            coefficient: c, a number for all examples, or shape (batch,).

        Returns:
            Shape (batch,), float32 or wider.
        """
        self._first = self._stop = 0
        self._coefficient = coefficient
        torch.clear_autocast_cache()
        losses = closure()
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

    def enter(self, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Counts the examples of a forward by its first tensor argument. A hook, called before the model runs."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim]
        require(bool(tensors), "probing: the model was called without a tensor, so examples cannot be counted")
        self._first, self._stop = self._stop, self._stop + len(tensors[0])
        self._tokens = tensors[0].shape[1] if tensors[0].ndim > 1 else 1
        if self._stop > self.directions.count:
            self._require_ids(not self._has_ids)
            self.directions.set_examples(range(self._stop))
        mask = kwargs.get("attention_mask")
        self._positions = None
        if isinstance(mask, Tensor) and mask.ndim == 2:
            self._positions = (mask.cumsum(1) - 1).masked_fill_(mask == 0, -1)

    @property
    def examples(self) -> int:
        """Number of examples in the current call of the model."""
        return self._stop - self._first

    def factors(self, view: WeightView, inputs: Tensor | None = None) -> Factors:
        """Returns the factors of the directions of the current examples over a weight, with c among the scales.

        Called by ``products`` for each use of the weight.

        Args:
            view: The view of the weight.
            inputs: The activations that a matrix multiplies, shape (examples, tokens, d); None for other uses.
        """
        directions, first, stop = self.directions, self._first, self._stop
        directions.see_inputs(view.weight, first, stop, inputs, self._positions)
        factors = directions.factors(view.weight, first, stop)
        assert factors is not None, "this prober needs a law of low rank"
        c = self._coefficient if isinstance(self._coefficient, float) else self._coefficient[first:stop, None]
        return factors._replace(scales=factors.scales * c)

    def vectors(self, view: WeightView) -> Tensor:
        """Returns θ + c·uᵢ of a vector, shape (examples, n), float32 or wider. Called by ``products``."""
        factors = self.factors(view)
        theta = view.theta if view.theta.dtype == torch.float64 else view.theta.float()
        return theta + (factors.outputs * factors.scales.unsqueeze(2))[:, 0]

    def by_example(self, tensor: Tensor, view: WeightView, what: str) -> Tensor:
        """Reshapes activations or ids so that the first dimension is that of the examples. Called by ``products``.

        Returns:
            Shape (examples, rows of each, d) for activations, (examples, tokens) for ids.

        Raises:
            UserError: If the first dimension is neither that of the examples nor that of all their tokens.
        """
        # The second length applies if the tokens of all examples are flattened.
        lengths = (self.examples, self.examples * self._tokens)
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
