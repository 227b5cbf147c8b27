"""Directions that are scaled by a diagonal estimate of the Hessian, which is learned from the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zolit.errors import require
from zolit.optim.base_point import BasePoint
from zolit.optim.blocks import Block, Weight
from zolit.optim.buffers import Scratch
from zolit.optim.perturbation.base import DrawnDirections, Perturbation
from zolit.optim.perturbation.gaussian_pool import GaussianPool
from zolit.optim.randomness import Step


class DiagonalCurvature(Perturbation):
    """Draws u = z/√h, where h estimates the diagonal of the Hessian (HiZOO, arXiv 2402.15173).

    After each step h ← (1 - α)h + α |c| h²u²/2, with c = uᵀ∇²Lu. Since h²u² = hz², this is the published rule
    α|l₊ + l₋ - 2l₀| hz²/2ε². h begins at 1. It takes four bytes for every parameter that has been perturbed. The
    estimator must measure curvatures.

    Args:
        smoothing: α, the weight of a new curvature, in [0, 1).
        inner: The law of z; None is GaussianPool.

    Raises:
        UserError: If α is out of its range, or if the law of z learns from curvatures too.
    """

    needs_curvatures = True

    def __init__(self, smoothing: float = 1e-8, inner: Perturbation | None = None) -> None:
        require(0.0 <= smoothing < 1.0, f"smoothing: the weight of a new curvature must lie in [0, 1), not {smoothing}")
        self._smoothing = smoothing
        self._law = inner or GaussianPool()
        require(
            not self._law.needs_curvatures,
            f"inner: {type(self._law).__name__} scales directions by curvatures, as DiagonalCurvature does; use "
            "another law",
        )
        self.needs_examples = self._law.needs_examples
        self._diagonals: dict[str, Tensor] = {}
        self._scratch = Scratch()

    def bind(self, model: nn.Module, weights: Sequence[Weight], blocks: Sequence[Block]) -> None:
        """Sets the chunk size, and binds the law of z; see ``Stage.bind``."""
        super().bind(model, weights, blocks)
        self._law.bind(model, weights, blocks)

    def prepare(self, base: BasePoint) -> None:
        """Prepares the law of z; see ``Stage.prepare``."""
        self._law.prepare(base)

    def begin_step(self, step: Step) -> None:
        """Begins a step of the law of z; see ``Perturbation.begin_step``."""
        self._law.begin_step(step)

    def chunks(self, weight: Weight) -> Sequence[tuple[int, int]]:
        """Returns the pieces of the law of z; see ``Perturbation.chunks``."""
        return self._law.chunks(weight)

    def draw(
        self, weight: Weight, key: int, start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, float]:
        """Draws z and divides it by √h, in float32; see ``Perturbation.draw``."""
        z, factor = self._law.draw(weight, key, start, stop)
        diagonal = self._diagonal(weight)
        if diagonal is None:
            return z, factor
        u = self._scratch.get(stop - start, z.device)
        return torch.rsqrt(diagonal[start:stop], out=u).mul_(z), factor

    def _diagonal(self, weight: Weight) -> Tensor | None:
        """Returns h of a weight, shape (numel,), float32, on its device; None while h is 1 everywhere."""
        diagonal = self._diagonals.get(weight.name)
        if diagonal is not None and diagonal.device != weight.parameter.device:
            diagonal = self._diagonals[weight.name] = diagonal.to(weight.parameter.device)
        return diagonal

    def observe(self, directions: DrawnDirections, curvatures: Tensor | None) -> None:
        """Updates h by the curvature along each direction in turn; see ``Perturbation.observe``.

        h of a parameter that is left out by a mask does not change.
        """
        assert curvatures is not None  # check_compatible refuses estimators that do not measure them
        if not self._smoothing:
            return
        for weight in directions.weights:
            for start, stop in directions.chunks(weight):
                learned = []
                for direction, curvature in enumerate(curvatures.tolist()):
                    u, factor = directions.draw(direction, weight, start, stop)
                    left_out = u == 0.0 if directions.masked else None
                    learned.append((u.square().mul_(abs(curvature) / 2.0 * factor**2), left_out))
                h = self._made_diagonal(weight)[start:stop]
                for square, left_out in learned:
                    change = square.mul_(h).sub_(1.0).mul_(h)
                    h.add_(change if left_out is None else change.masked_fill_(left_out, 0.0), alpha=self._smoothing)

    def _made_diagonal(self, weight: Weight) -> Tensor:
        """Returns h of a weight, and makes it first if it does not exist yet."""
        diagonal = self._diagonal(weight)
        if diagonal is None:
            theta = weight.parameter
            diagonal = torch.ones(theta.numel(), dtype=torch.float32, device=theta.device)
            self._diagonals[weight.name] = diagonal
        return diagonal

    def scratch_bytes(self) -> int:
        """Returns the bytes of h and of the law of z; see ``Stage.scratch_bytes``."""
        held = sum(diagonal.nbytes for diagonal in self._diagonals.values())
        return held + self._scratch.bytes() + self._law.scratch_bytes()

    def state_dict(self) -> dict[str, Any]:
        """Returns h of every weight that has one, and the state of the law of z; see ``Stage.state_dict``."""
        return {"diagonals": dict(self._diagonals), "law": self._law.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores h, in float32 for all types of weights, and the law of z; see ``Stage.load_state_dict``."""
        self._law.load_state_dict(state["law"])
        self._diagonals = {name: diagonal.clone() for name, diagonal in state["diagonals"].items()}
