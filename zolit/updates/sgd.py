"""Stochastic gradient descent with the estimate in the gradient's place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from zolit.blocks import Weight
from zolit.directions import Directions
from zolit.errors import require, require_one_of
from zolit.hashing import mix
from zolit.rounding import Rounding, Widener
from zolit.updates.base import Update


class SGD(Update):
    """ĝ = Σ aᵢûᵢ + λθ; v ← μv + ĝ; θ ← θ - ηv (without μ, MeZO's own: arXiv 2305.17333, Algorithm 1).

    Without momentum nothing is kept and blocks that were not chosen are not touched, unless they decay.

    Args:
        momentum: μ. Anything but 0 keeps v: four bytes for every trainable parameter.
        weight_decay: λ, for weights of two dimensions or more: norms and biases do not decay. MeZO's code goes by the
            names ``bias`` and ``layernorm`` instead, which other architectures do not have.
        rounding: How the result is rounded where weights have 16 bits.

    Attributes:
        momentum: μ.

    Raises:
        UserError: If a number is out of its range or the rounding unknown.
    """

    def __init__(self, momentum: float = 0.0, weight_decay: float = 0.0, rounding: Rounding = "stochastic") -> None:
        require(0.0 <= momentum < 1.0, f"momentum: must lie in [0, 1), not {momentum}")
        require(0.0 <= weight_decay < math.inf, f"weight_decay: must be at least 0, not {weight_decay}")
        require_one_of("update_rounding", rounding, get_args(Rounding))
        self.momentum = momentum
        self._weight_decay = weight_decay
        self._rounding = rounding
        self._velocities: dict[str, Tensor] = {}
        self._widener = Widener()

    def apply(
        self, weights: Sequence[Weight], directions: Directions, coefficients: Sequence[float], lr: float, key: int
    ) -> None:
        """Makes one step; see the base class."""
        descent = [-lr * coefficient for coefficient in coefficients]
        moved = set(directions.weights)
        for weight in weights:
            decay = self._weight_decay if weight.parameter.ndim > 1 else 0.0
            if not (self.momentum or decay or weight in moved):
                continue
            velocity = self._velocity(weight) if self.momentum else None
            flat = weight.flat
            for start, stop in directions.ranges(weight):
                draw = mix(key, weight.key, start) if self._rounding == "stochastic" else None
                with self._widener.widened(flat[start:stop], draw) as piece:
                    if velocity is None:
                        if decay:
                            piece.mul_(1.0 - lr * decay)
                        directions.add_gradient(piece, weight, start, stop, descent)
                    else:
                        v = velocity[start:stop].mul_(self.momentum)
                        if decay:
                            v.add_(piece, alpha=decay)
                        directions.add_gradient(v, weight, start, stop, coefficients)
                        piece.add_(v, alpha=-lr)

    def _velocity(self, weight: Weight) -> Tensor:
        """Returns v of a weight, shape (numel,), float32."""
        velocity = self._velocities.get(weight.name)
        if velocity is None:
            velocity = torch.zeros(weight.parameter.numel(), dtype=torch.float32)
        self._velocities[weight.name] = velocity.to(weight.parameter.device)
        return self._velocities[weight.name]

    def scratch_bytes(self) -> int:
        """Returns the bytes of the rounding buffers and of v."""
        return self._widener.scratch_bytes() + sum(velocity.nbytes for velocity in self._velocities.values())

    def state_dict(self) -> dict[str, Any]:
        """Returns v of every weight that has one."""
        return {"velocities": {name: velocity.clone() for name, velocity in self._velocities.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up velocities, in float32 whatever the weights are."""
        self._velocities = {name: velocity.clone() for name, velocity in state["velocities"].items()}
