"""The state that the views of one step share: the directions, and the queries of the current forward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zolit.optim.blocks import Weight
from zolit.optim.buffers import Scratch
from zolit.optim.perturbation.directions import Directions
from zolit.optim.probing import arithmetic
from zolit.optim.probing.views import WeightView

Query = Sequence[float]
"""A row of C, shape (k,)."""


class NotJointError(Exception):
    """Raised when a module computes a result in which the copies of the batch cannot be separated."""


class Probe:
    """The state that all views of one step share. Views use it to compute a weight at a query.

    Args:
        directions: u_1 ... u_k.
        scratch: Buffers for perturbed matrices, one for each type.
        sums: float32 buffer for sums, for weights of 16 bits.

    Attributes:
        queries: The rows of C in the current forward, one for each copy of the batch.
        examples: Number of examples in a copy of the batch.
    """

    def __init__(self, directions: Directions, scratch: dict[torch.dtype, Scratch], sums: Scratch) -> None:
        self.directions = directions
        self.scratch = scratch
        self._sums = sums
        self.queries: Sequence[Query] = ()
        self.examples = 1
        self._pieces: dict[Weight, Sequence[tuple[int, int, Tensor]]] = {}

    def row(self, view: WeightView) -> int:
        """Returns the length of a row, for a matrix whose pieces are whole rows, and 0 for other weights."""
        width = view.theta.shape[-1] if view.theta.ndim == 2 else 0
        return width if width <= self.directions.chunk_size else 0

    def pieces(self, view: WeightView) -> Sequence[tuple[int, int, Tensor]]:
        """Returns (start, stop, θ) of each piece of a weight, θ of shape (stop - start,). Called for each product."""
        pieces = self._pieces.get(view.weight)
        if pieces is None:
            flat = view.theta.view(-1)
            chunks = self.directions.chunks(view.weight)
            pieces = self._pieces[view.weight] = [(start, stop, flat[start:stop]) for start, stop in chunks]
        return pieces

    def at(self, view: WeightView, query: Query) -> Tensor:
        """Returns a weight at a query, in new memory. Called for weights that are not processed piece by piece."""
        values = torch.empty_like(view.theta)
        flat, pieces = values.view(-1), self.pieces(view)
        for start, stop, origin in pieces:
            out = flat if len(pieces) == 1 else flat[start:stop]
            self.perturb(origin, out, view.weight, start, stop, query)
        return values

    def perturb(self, origin: Tensor, out: Tensor, weight: Weight, start: int, stop: int, query: Query) -> None:
        """Writes a piece of a weight at a query to ``out``; see ``arithmetic.perturb``."""
        arithmetic.perturb(self.directions, origin, out, weight, start, stop, query, self._sums)

    def copies(self, activations: Tensor) -> Sequence[Tensor]:
        """Splits activations into those of each copy of the batch. Called for each product.

        Raises:
            NotJointError: If the first dimension is neither the batch nor the batch flattened with other dimensions.
        """
        count = len(self.queries)
        if count > 1 and (not activations.ndim or activations.shape[0] % (count * self.examples)):
            raise NotJointError
        return activations.chunk(count) if count > 1 else (activations,)
