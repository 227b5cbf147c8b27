"""Adam, with the gradient estimate or a true gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from zolit.errors import require, require_one_of
from zolit.optim.arrivals import Read
from zolit.optim.blocks import Weight
from zolit.optim.randomness import Step
from zolit.optim.updates.base import Update
from zolit.optim.updates.gradient import Gradient
from zolit.optim.updates.rounding import Rounding, Upcaster, rounding_key
from zolit.optim.updates.rule import Chunks


class Adam(Update):
    """Applies Adam to the gradient estimate: θ ← θ - η m̂ / (√v̂ + ε) (Kingma and Ba, arXiv 1412.6980).

    m and v are moving averages of ĝ = Σ aᵢûᵢ and of ĝ². Weight decay is decoupled (Loshchilov and Hutter, arXiv
    1711.05101). The averages are float32 for all types of weights, eight bytes for every trainable parameter. A step
    moves each single parameter by about the learning rate. The rate must therefore be far smaller than that of SGD.

    Args:
        betas: The weights of the old averages, both in [0, 1).
        epsilon: ε of the denominator.
        weight_decay: λ, for weights of two or more dimensions.
        rounding: How to round the result for weights of 16 bits.

    Raises:
        UserError: If a number is out of its range, or if the rounding is unknown.
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
        self._upcaster = Upcaster()

    def apply(self, weights: Sequence[Weight], gradient: Gradient, lr: float, step: Step) -> None:
        """Moves the weights along the estimate; see ``Update.apply``."""
        self._steps += 1
        for weight in weights:
            for start, stop in gradient.directions.chunks(weight):
                piece = torch.zeros(stop - start, dtype=torch.float32, device=weight.parameter.device)
                gradient.add_to(piece, weight, start, stop)
                self.move(weight, piece, start, stop, lr, step)

    def descend(self, weight: Weight, read: Read, chunks: Chunks, lr: float, step: Step) -> None:
        """Moves a weight by its gradient; see ``Rule.descend``."""
        for start, stop in chunks:
            self.move(weight, read(start, stop), start, stop, lr, step)

    def move(self, weight: Weight, gradient: Tensor, start: int, stop: int, lr: float, step: Step) -> None:
        """Moves a piece of a weight by its gradient. Called for each piece.

        Args:
            weight: The weight.
            gradient: The gradient of the piece, shape (stop - start,), float32.
            start: Index of the first element.
            stop: Index after the last element.
            lr: The learning rate.
            step: The step.
        """
        first, second = self._moments_of(weight)[:, start:stop]
        first.lerp_(gradient, 1.0 - self._betas[0])
        second.mul_(self._betas[1]).addcmul_(gradient, gradient, value=1.0 - self._betas[1])
        key = rounding_key(self._rounding, step, weight, start)
        unbiased = [1.0 - beta**self._steps for beta in self._betas]
        with self._upcaster.upcast([weight.flat[start:stop]], key) as (piece,):
            if self._weight_decay and weight.parameter.ndim > 1:
                piece.mul_(1.0 - lr * self._weight_decay)
            denominator = (second / unbiased[1]).sqrt_().add_(self._epsilon)
            piece.addcdiv_(first, denominator, value=-lr / unbiased[0])

    def begin_step(self) -> None:
        """Counts a step. Called once a step, before ``descend``, by updates that do not call ``apply``."""
        self._steps += 1

    def _moments_of(self, weight: Weight) -> Tensor:
        """Returns m and v of a weight, shape (2, numel), float32."""
        moments = self._moments.get(weight.name)
        if moments is None:
            moments = torch.zeros(2, weight.parameter.numel(), dtype=torch.float32)
        self._moments[weight.name] = moments.to(weight.parameter.device)
        return self._moments[weight.name]

    def scratch_bytes(self) -> int:
        """Returns the bytes of m, v and the rounding buffers; see ``Stage.scratch_bytes``."""
        return self._upcaster.scratch_bytes() + sum(moments.nbytes for moments in self._moments.values())

    def state_dict(self) -> dict[str, Any]:
        """Returns m and v by the names of the weights; see ``Stage.state_dict``."""
        return {"steps": self._steps, "moments": dict(self._moments)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores m and v, in float32 for all types of weights; see ``Stage.load_state_dict``."""
        self._steps = state["steps"]
        self._moments = {name: both.clone() for name, both in state["moments"].items()}
