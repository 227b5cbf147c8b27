"""Stochastic gradient descent with the gradient estimate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
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


class SGD(Update):
    """Descends by ĝ = Σ aᵢûᵢ + λθ, v ← μv + ĝ, θ ← θ - ηv (without μ as in MeZO, arXiv 2305.17333, Algorithm 1).

    Without momentum, no state is kept, and blocks outside of the sample are not written unless they have weight decay.

    Args:
        momentum: μ. Any value except 0 keeps v, which takes four bytes for every trainable parameter.
        weight_decay: λ, for weights of two or more dimensions, so that norms and biases do not decay. The code of MeZO
            excludes the names ``bias`` and ``layernorm`` instead, which other architectures do not have.
        rounding: How to round the result for weights of 16 bits.

    Attributes:
        momentum: μ.

    Raises:
        UserError: If a number is out of its range, or if the rounding is unknown.
    """

    def __init__(self, momentum: float = 0.0, weight_decay: float = 0.0, rounding: Rounding = "stochastic") -> None:
        require(0.0 <= momentum < 1.0, f"momentum: must lie in [0, 1), not {momentum}")
        require(0.0 <= weight_decay < math.inf, f"weight_decay: must be at least 0, not {weight_decay}")
        require_one_of("update_rounding", rounding, get_args(Rounding))
        self.momentum = momentum
        self.reach = 1.0 / (1.0 - momentum)
        self._weight_decay = weight_decay
        self._rounding = rounding
        self._velocities: dict[str, Tensor] = {}
        self._upcaster = Upcaster()

    def apply(self, weights: Sequence[Weight], gradient: Gradient, lr: float, step: Step) -> None:
        """Moves the weights along minus ĝ; see ``Update.apply``."""
        directions = gradient.directions
        moved = set(directions.weights)
        moving = [
            weight for weight in weights if self.momentum or (self._weight_decay and _decays(weight)) or weight in moved
        ]
        for group in groups([(weight, *ends) for weight in moving for ends in directions.chunks(weight)]):
            weight, start, _ = group[0]
            key = rounding_key(self._rounding, step, weight, start)
            flats = [weight.flat[start:stop] for weight, start, stop in group]
            with self._upcaster.upcast(flats, key) as pieces:
                for piece, (weight, start, stop) in zip(pieces, group, strict=True):
                    self._move(piece, weight, start, stop, lr, partial(_add_estimate, gradient, weight, start, stop))

    def begin_step(self) -> None:
        """Does nothing; see ``Rule.begin_step``."""

    def descend(self, weight: Weight, read: Read, chunks: Chunks, lr: float, step: Step) -> None:
        """Moves a weight by its gradient; see ``Rule.descend``."""
        for start, stop in chunks:
            key = rounding_key(self._rounding, step, weight, start)
            with self._upcaster.upcast([weight.flat[start:stop]], key) as (piece,):
                self._move(piece, weight, start, stop, lr, partial(_add, read(start, stop)))

    def _move(
        self, piece: Tensor, weight: Weight, start: int, stop: int, lr: float, add: Callable[[Tensor, float], object]
    ) -> None:
        """Moves a piece; ``add`` adds the gradient to a tensor with a factor."""
        decay = self._weight_decay if _decays(weight) else 0.0
        if not self.momentum:
            if decay:
                piece.mul_(1.0 - lr * decay)
            add(piece, -lr)
            return
        v = self._velocity(weight)[start:stop].mul_(self.momentum)
        if decay:
            v.add_(piece, alpha=decay)
        add(v, 1.0)
        piece.add_(v, alpha=-lr)

    def _velocity(self, weight: Weight) -> Tensor:
        """Returns v of a weight, shape (numel,), float32."""
        velocity = self._velocities.get(weight.name)
        if velocity is None:
            velocity = torch.zeros(weight.parameter.numel(), dtype=torch.float32)
        self._velocities[weight.name] = velocity.to(weight.parameter.device)
        return self._velocities[weight.name]

    def scratch_bytes(self) -> int:
        """Returns the bytes of the rounding buffers and of v; see ``Stage.scratch_bytes``."""
        return self._upcaster.scratch_bytes() + sum(velocity.nbytes for velocity in self._velocities.values())

    def state_dict(self) -> dict[str, Any]:
        """Returns v of every weight that has one; see ``Stage.state_dict``."""
        return {"velocities": dict(self._velocities)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores v, in float32 for all types of weights; see ``Stage.load_state_dict``."""
        self._velocities = {name: velocity.clone() for name, velocity in state["velocities"].items()}


def _add(gradient: Tensor, into: Tensor, scale: float) -> None:
    into.add_(gradient, alpha=scale)


def _add_estimate(gradient: Gradient, weight: Weight, start: int, stop: int, into: Tensor, scale: float) -> None:
    gradient.add_to(into, weight, start, stop, scale)


def _decays(weight: Weight) -> bool:
    return weight.parameter.ndim > 1


_GROUP_SIZE = 1 << 22
Piece = tuple[Weight, int, int]
"""A weight, the index of the first element of a piece, and the index after its last element."""


def groups(pieces: Sequence[Piece]) -> Iterator[Sequence[Piece]]:
    """Groups pieces that are upcast and rounded together. Called once a step.

    On a CPU each piece is a group, so that it stays in the cache. On other devices kernel launches are expensive. There
    successive pieces of the same type and device form a group of up to 4 million numbers. A larger piece is a group by
    itself.
    """
    group: list[Piece] = []
    free = 0
    kind: tuple[torch.device, torch.dtype] | None = None
    for piece in pieces:
        weight, start, stop = piece
        parameter = weight.parameter
        if group and (stop - start > free or kind != (parameter.device, parameter.dtype)):
            yield group
            group = []
        if not group:
            kind = parameter.device, parameter.dtype
            free = 0 if parameter.device.type == "cpu" else _GROUP_SIZE
        group.append(piece)
        free -= stop - start
    if group:
        yield group
