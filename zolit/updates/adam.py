"""Adam with the estimate in the gradient's place."""

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


class Adam(Update):
    """m and v are moving averages of ĝ = Σ aᵢûᵢ and ĝ², and θ ← θ - η m̂ / (√v̂ + ε) (Kingma and Ba, arXiv 1412.6980).

    Decay is decoupled (Loshchilov and Hutter, arXiv 1711.05101). Eight bytes for every trainable parameter, float32
    whatever the weights are. The learning rate is about the length of a step of every single weight: far smaller than
    SGD's would be.

    Args:
        betas: Weights of the old averages, in [0, 1).
        epsilon: ε of the denominator.
        weight_decay: λ, for weights of two dimensions or more.
        rounding: How the result is rounded where weights have 16 bits.

    Raises:
        UserError: If a number is out of its range or the rounding unknown.
    """

    def __init__(
        self,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        rounding: Rounding = "stochastic",
    ) -> None:
        require(all(0.0 <= beta < 1.0 for beta in betas), f"betas: both must lie in [0, 1), not {betas}")
        require(epsilon > 0.0, f"epsilon: must be positive, not {epsilon}")
        require(0.0 <= weight_decay < math.inf, f"weight_decay: must be at least 0, not {weight_decay}")
        require_one_of("update_rounding", rounding, get_args(Rounding))
        self._betas = betas
        self._epsilon = epsilon
        self._weight_decay = weight_decay
        self._rounding = rounding
        self._steps = 0
        self._moments: dict[str, Tensor] = {}
        self._widener = Widener()

    def apply(
        self, weights: Sequence[Weight], directions: Directions, coefficients: Sequence[float], lr: float, key: int
    ) -> None:
        """Makes one step; see the base class."""
        self._steps += 1
        for weight in weights:
            for start, stop in directions.ranges(weight):
                gradient = torch.zeros(stop - start, dtype=torch.float32, device=weight.parameter.device)
                directions.add_gradient(gradient, weight, start, stop, coefficients)
                self.move(weight, gradient, start, stop, lr, key)

    def move(self, weight: Weight, gradient: Tensor, start: int, stop: int, lr: float, key: int) -> None:
        """Moves a piece of a weight, given its gradient, of shape (stop - start,); the present step is ``steps``."""
        first, second = self._of(weight)[:, start:stop]
        first.lerp_(gradient, 1.0 - self._betas[0])
        second.mul_(self._betas[1]).addcmul_(gradient, gradient, value=1.0 - self._betas[1])
        draw = mix(key, weight.key, start) if self._rounding == "stochastic" else None
        unbiased = [1.0 - beta**self._steps for beta in self._betas]
        with self._widener.widened([weight.flat[start:stop]], draw) as (piece,):
            if self._weight_decay and weight.parameter.ndim > 1:
                piece.mul_(1.0 - lr * self._weight_decay)
            denominator = (second / unbiased[1]).sqrt_().add_(self._epsilon)
            piece.addcdiv_(first, denominator, value=-lr / unbiased[0])

    def begin_step(self) -> None:
        """Counts a step of somebody who calls ``move`` himself."""
        self._steps += 1

    def _of(self, weight: Weight) -> Tensor:
        """Returns m and v of a weight, shape (2, numel), float32."""
        moments = self._moments.get(weight.name)
        if moments is None:
            moments = torch.zeros(2, weight.parameter.numel(), dtype=torch.float32)
        self._moments[weight.name] = moments.to(weight.parameter.device)
        return self._moments[weight.name]

    def scratch_bytes(self) -> int:
        """Returns the bytes of the averages and of the rounding buffers."""
        return self._widener.scratch_bytes() + sum(moments.nbytes for moments in self._moments.values())

    def state_dict(self) -> dict[str, Any]:
        """Returns the averages by the weights' names."""
        return {"steps": self._steps, "moments": {name: both.clone() for name, both in self._moments.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up averages, in float32 whatever the weights are."""
        self._steps = state["steps"]
        self._moments = {name: both.clone() for name, both in state["moments"].items()}
