"""Stochastic gradient descent with the estimate in the gradient's place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
        moved = set(directions.weights)
        moving = [
            weight for weight in weights if self.momentum or (self._weight_decay and _decays(weight)) or weight in moved
        ]
        descent = [-lr * coefficient for coefficient in coefficients]
        for group in groups([(weight, *ends) for weight in moving for ends in directions.ranges(weight)]):
            weight, start, _ = group[0]
            draw = mix(key, weight.key, start) if self._rounding == "stochastic" else None
            flats = [weight.flat[start:stop] for weight, start, stop in group]
            with self._widener.widened(flats, draw) as pieces:
                for piece, (weight, start, stop) in zip(pieces, group, strict=True):
                    decay = self._weight_decay if _decays(weight) else 0.0
                    if not self.momentum:
                        if decay:
                            piece.mul_(1.0 - lr * decay)
                        directions.add_gradient(piece, weight, start, stop, descent)
                        continue
                    v = self._velocity(weight)[start:stop].mul_(self.momentum)
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


def _decays(weight: Weight) -> bool:
    return weight.parameter.ndim > 1


_TOGETHER = 1 << 22

Piece = tuple[Weight, int, int]
"""Elements of a weight, from the one and to before the other."""


def groups(pieces: Sequence[Piece]) -> Iterator[Sequence[Piece]]:
    """Groups pieces that are widened and rounded together: on a CPU each by itself, while it is in a cache.

    Where launching work takes long, successive ones of a type and device are a group, of up to 4 million numbers if
    they are not larger.
    """
    group: list[Piece] = []
    room = 0
    kind: tuple[torch.device, torch.dtype] | None = None
    for piece in pieces:
        weight, start, stop = piece
        parameter = weight.parameter
        if group and (stop - start > room or kind != (parameter.device, parameter.dtype)):
            yield group
            group = []
        if not group:
            kind = parameter.device, parameter.dtype
            room = 0 if parameter.device.type == "cpu" else _TOGETHER
        group.append(piece)
        room -= stop - start
    if group:
        yield group
