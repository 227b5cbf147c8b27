"""Probing by moving the weights themselves, and moving them back."""

from __future__ import annotations

import torch
from torch import Tensor

from zolit.closure import Closure, mean_losses
from zolit.directions import Directions
from zolit.probing.base import Prober


class InPlace(Prober):
    """θ is moved to each query in turn, each chunk of it in one pass, and back (MeZO, arXiv 2305.17333, Algorithm 1).

    Works with any model, however it reads its weights. float32 weights come back to rounding: 1e-8 after a hundred
    steps, for weights of 0.02. Rounding to 16 bits, which has a weight drift by a whole ε in as many steps, cannot be
    undone by arithmetic; there the perturbed blocks are copied first, moved from the copy and restored from it to the
    bit, which takes their size in memory.

    Args:
        exact: Copy and restore weights of all types.
    """

    def __init__(self, exact: bool = False) -> None:
        self._exact = exact
        self._copied = 0

    def losses(self, closure: Closure, directions: Directions, queries: Tensor) -> Tensor:
        """Evaluates the queries; see the base class."""
        weights = directions.weights
        copies = {w: w.flat.clone() for w in weights if self._exact or w.parameter.dtype.itemsize < 4}
        self._copied = max(self._copied, sum(copy.nbytes for copy in copies.values()))
        pieces = [(weight, *ends) for weight in weights for ends in directions.ranges(weight)]
        home = [0.0] * directions.count
        reached = [home] * len(pieces)
        losses = []

        def move(target: list[float]) -> None:
            """Moves every piece from where it is to θ + Σᵢ targetᵢ·uᵢ, and writes down that it is there."""
            for index, (weight, start, stop) in enumerate(pieces):
                piece = weight.flat[start:stop]
                if weight in copies:
                    directions.perturb(copies[weight][start:stop], piece, weight, start, stop, target)
                else:
                    way = [there - here for here, there in zip(reached[index], target, strict=True)]
                    directions.perturb(piece, piece, weight, start, stop, way)
                reached[index] = target

        try:
            for query in queries.tolist():
                move(query)
                losses.append(mean_losses(closure))
        finally:
            move(home)
            torch.clear_autocast_cache()  # else a forward after the step would still see the last probe's weights
        return torch.cat(losses)

    def scratch_bytes(self) -> int:
        """Returns the bytes of the copies."""
        return self._copied
