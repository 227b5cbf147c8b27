"""Probes by moving the weights to each query, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from zolit.optim.base_point import Closure, mean_losses
from zolit.optim.buffers import Scratch
from zolit.optim.perturbation.directions import Directions
from zolit.optim.probing import arithmetic
from zolit.optim.probing.base import Prober


class InPlace(Prober):
    """Moves θ to each query in turn, chunk by chunk, and back (MeZO, arXiv 2305.17333, Algorithm 1).

    This works with every model, because the weights themselves move. float32 weights are restored by arithmetic. The
    error is 1e-8 after a hundred steps, for weights of 0.02. For weights of 16 bits, arithmetic cannot undo the
    rounding: a weight would drift by a whole ε in a hundred steps. These weights are copied before the first probe, and
    restored from the copy bit by bit. The copy takes as much memory as the perturbed blocks.

    Args:
        exact: Whether to copy and restore weights of all types.
    """

    def __init__(self, exact: bool = False) -> None:
        self._exact = exact
        self._copied = 0
        self._scratch = Scratch()

    def losses(self, closure: Closure, directions: Directions, queries: Tensor, repeats_batch: bool = False) -> Tensor:
        """Moves θ to each query in turn; see ``Prober.losses``."""
        weights = directions.weights
        copies = {w: w.flat.clone() for w in weights if self._exact or w.parameter.dtype.itemsize < 4}
        self._copied = max(self._copied, sum(copy.nbytes for copy in copies.values()))
        pieces = [(weight, *ends) for weight in weights for ends in directions.chunks(weight)]
        home = [0.0] * directions.count
        reached = [home] * len(pieces)
        losses = []

        def move(target: list[float]) -> None:
            """Moves every piece to θ + Σᵢ targetᵢ·uᵢ, and records its new point."""
            for index, (weight, start, stop) in enumerate(pieces):
                piece = weight.flat[start:stop]
                if weight in copies:
                    origin, coefficients = copies[weight][start:stop], target
                else:
                    difference = [new - old for old, new in zip(reached[index], target, strict=True)]
                    origin, coefficients = piece, difference
                arithmetic.perturb(directions, origin, piece, weight, start, stop, coefficients, self._scratch)
                reached[index] = target

        try:
            for query in queries.tolist():
                move(query)
                losses.append(mean_losses(closure))
        finally:
            move(home)
            torch.clear_autocast_cache()  # a later forward would use the weights of the last probe
        return torch.cat(losses)

    def scratch_bytes(self) -> int:
        """Returns the bytes of the copies and of the buffer for sums; see ``Stage.scratch_bytes``."""
        return self._copied + self._scratch.bytes()
