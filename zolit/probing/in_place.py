"""Probing by moving the weights themselves, and moving them back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zolit.blocks import Weight
from zolit.directions import Directions
from zolit.probing.base import Closure, Prober, mean_loss
from zolit.rounding import Widener


class InPlace(Prober):
    """θ is moved to each query in turn, each chunk of it in one pass, and back (MeZO, arXiv 2305.17333, Algorithm 1).

    float32 weights come back to rounding: 1e-8 after a hundred steps, for weights of 0.02. Rounding to 16 bits, which
    has a weight drift by a whole ε in as many steps, cannot be undone by arithmetic; there the perturbed blocks are
    copied first, moved from the copy and restored from it to the bit, which takes their size in memory.
    """

    def __init__(self) -> None:
        self._widener = Widener()
        self._copied = 0

    def losses(self, closure: Closure, directions: Directions, queries: Tensor) -> Tensor:
        """Evaluates the queries; see the base class."""
        weights = directions.weights
        copies = {w: w.flat.clone() for w in weights if w.parameter.dtype.itemsize < 4}
        self._copied = max(self._copied, sum(copy.nbytes for copy in copies.values()))
        start = [0.0] * directions.count
        reached = dict.fromkeys(weights, start)
        losses = []
        try:
            for target in queries.tolist():
                self._move(directions, copies, reached, target)
                losses.append(mean_loss(closure))
        finally:
            self._move(directions, copies, reached, start)
            torch.clear_autocast_cache()  # else a forward after the step would still see the last probe's weights
        return torch.stack(losses)

    def _move(
        self,
        directions: Directions,
        copies: dict[Weight, Tensor],
        reached: dict[Weight, list[float]],
        target: list[float],
    ) -> None:
        """Moves every weight from where it is to θ + Σᵢ targetᵢ·uᵢ, and writes down that it is there."""
        for weight, origin in reached.items():
            flat = weight.flat
            if weight in copies:
                flat.copy_(copies[weight])
                coefficients: Sequence[float] = target
            else:
                coefficients = [there - here for here, there in zip(origin, target, strict=True)]
            if any(coefficients):
                for start, stop in directions.ranges(weight):
                    with self._widener.widened(flat[start:stop]) as piece:
                        directions.add(piece, weight, start, stop, coefficients)
            reached[weight] = target

    def scratch_bytes(self) -> int:
        """Returns the bytes of copies and buffers."""
        return self._copied + self._widener.scratch_bytes()
