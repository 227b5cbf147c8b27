"""Directions that are short where the loss bends: a diagonal of its Hessian is learned along the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zolit.blocks import Weight
from zolit.errors import require
from zolit.perturbation.base import Perturbation
from zolit.perturbation.pool import GaussianPool
from zolit.scratch import Scratch

if TYPE_CHECKING:  # who draw from a law, and thus import this room
    from zolit.directions import Directions
    from zolit.estimators.base import Estimate


class DiagonalCurvature(Perturbation):
    """u = z/√h, and after each step h ← (1 - α)h + α |c| h²u²/2, c = uᵀ∇²Lu (HiZOO, arXiv 2402.15173).

    h²u² is hz², so that this is the published rule α|l₊ + l₋ - 2l₀| hz²/2ε². h begins at 1 and takes four bytes for
    every trainable weight that has been moved. Goes with an estimator that measures curvatures.

    Args:
        smoothing: α, in [0, 1).
        inner: The law of z; None is GaussianPool.

    Raises:
        UserError: If α is out of its range.
    """

    def __init__(self, smoothing: float = 1e-8, inner: Perturbation | None = None) -> None:
        require(0.0 <= smoothing < 1.0, f"smoothing: the weight of a new curvature must lie in [0, 1), not {smoothing}")
        self._smoothing = smoothing
        self._law = inner or GaussianPool()
        self._diagonals: dict[str, Tensor] = {}
        self._scratch = Scratch()

    def bind(self, weights: Sequence[Weight]) -> None:
        """Takes all trainable weights; see the base class."""
        super().bind(weights)
        self._law.bind(weights)

    def begin(self, seed: int, step: int) -> None:
        """Begins a step of z; see the base class."""
        self._law.begin(seed, step)

    def ranges(self, weight: Weight) -> Sequence[tuple[int, int]]:
        """Returns z's; see the base class."""
        return self._law.ranges(weight)

    def draw(
        self, weight: Weight, key: int, start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, float]:
        """Draws z and scales it, in float32; see the base class."""
        z, factor = self._law.draw(weight, key, start, stop)
        diagonal = self._diagonal(weight)
        if diagonal is None:
            return z, factor
        u = self._scratch.take(stop - start, z.device)
        return torch.rsqrt(diagonal[start:stop], out=u).mul_(z), factor

    def _diagonal(self, weight: Weight) -> Tensor | None:
        """Returns h of a weight, shape (numel,), float32, on its device; None while it is 1."""
        diagonal = self._diagonals.get(weight.name)
        if diagonal is not None and diagonal.device != weight.parameter.device:
            diagonal = self._diagonals[weight.name] = diagonal.to(weight.parameter.device)
        return diagonal

    def observe(self, directions: Directions, estimate: Estimate) -> None:
        """Learns h from the curvatures along the step's directions, one after the other; see the base class.

        Raises:
            UserError: If the estimator measures none.
        """
        require(
            estimate.curvatures is not None,
            "estimator: DiagonalCurvature learns from curvatures, which this estimator does not measure; take "
            "zolit.estimators.Central",
        )
        assert estimate.curvatures is not None
        if not self._smoothing:
            return
        for weight in directions.weights:
            for start, stop in directions.ranges(weight):
                learned = []
                for direction, curvature in enumerate(estimate.curvatures.tolist()):
                    u, factor = directions.draw(direction, weight, start, stop)
                    learned.append(u.square().mul_(abs(curvature) / 2.0 * factor**2))
                h = self._made(weight)[start:stop]
                for square in learned:
                    h.add_(square.mul_(h).sub_(1.0).mul_(h), alpha=self._smoothing)

    def _made(self, weight: Weight) -> Tensor:
        """Returns h of a weight, made where there is none yet."""
        diagonal = self._diagonal(weight)
        if diagonal is None:
            theta = weight.parameter
            diagonal = torch.ones(theta.numel(), dtype=torch.float32, device=theta.device)
            self._diagonals[weight.name] = diagonal
        return diagonal

    def scratch_bytes(self) -> int:
        """Returns the bytes of h and of what z takes."""
        held = sum(diagonal.nbytes for diagonal in self._diagonals.values())
        return held + self._scratch.bytes() + self._law.scratch_bytes()

    def state_dict(self) -> dict[str, Any]:
        """Returns h of every weight that has one."""
        return {"diagonals": {name: diagonal.clone() for name, diagonal in self._diagonals.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up h, in float32 whatever the weights are."""
        self._diagonals = {name: diagonal.clone() for name, diagonal in state["diagonals"].items()}
