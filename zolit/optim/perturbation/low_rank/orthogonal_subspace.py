"""Directions within a random subspace of each matrix. The subspace is drawn again after a number of steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zolit.errors import require
from zolit.optim.blocks import Weight
from zolit.optim.perturbation.factored import Factors
from zolit.optim.perturbation.low_rank.pooled import PooledFactors
from zolit.optim.randomness import Generators, Step, fold_in, key_of

_BASES = key_of("orthogonal bases")


class OrthogonalSubspace(PooledFactors):
    """Draws Δ = U Z Vᵀ, with Z ~ N(0, 1) and orthonormal U, V that stay for some steps (SubZero, arXiv 2410.08989).

    Without the scale, E[⟨G, Δ⟩ Δ] = UUᵀ G VVᵀ, which is the projection of the gradient. Vectors and single numbers get
    dense normal directions. U and V are functions of (seed, step // refresh, weight), so a resumed run draws the same U
    and V. Between two refreshes they are kept. This takes (n + d)·rank numbers for a matrix of shape (n, d).

    Args:
        rank: r. In a matrix with a smaller side, r is the length of this side.
        refresh: Number of steps for which U and V stay constant.
        scale: Whether to multiply by √(nd)/r, as the published code does. Δ is then about as long as a dense direction.

    Raises:
        UserError: If the rank or the number of steps is not positive.
    """

    def __init__(self, rank: int = 24, refresh: int = 1000, scale: bool = True) -> None:
        super().__init__(rank)
        require(refresh >= 1, f"refresh: the steps for which a subspace stays must be at least 1, not {refresh}")
        self._refresh = refresh
        self._scale = scale
        self._period = 0
        self._bases: dict[Weight, tuple[Tensor, Tensor]] = {}
        self._generators = Generators()

    def begin_step(self, step: Step) -> None:
        """Drops U and V if a new period begins; see ``Perturbation.begin_step``."""
        super().begin_step(step)
        period = fold_in(step.seed, _BASES, step.index // self._refresh)
        if period != self._period:
            self._period = period
            self._bases.clear()

    def _factors(self, weight: Weight, keys: Sequence[int]) -> Factors:
        """Returns UZ and V for several directions of a weight; the factors of a dense direction for a vector."""
        theta = weight.parameter
        if theta.ndim < 2:
            return super()._factors(weight, keys)
        name = (weight, tuple(keys))
        factors = self._known.get(name)
        if factors is None:
            u, v = self._basis(weight)
            rank = u.shape[1]
            z = torch.stack([self._normal(key, weight, rank, rank) for key in keys])
            dtype = theta.dtype if theta.dtype.itemsize == 2 else torch.float32
            outputs, inputs = (u @ z).mT.to(dtype), v.t().to(dtype).expand(len(keys), -1, -1)
            scale = theta.numel() ** 0.5 / rank if self._scale else 1.0
            self._known.clear()
            factors = self._known[name] = Factors(outputs, inputs, z.new_full((len(keys), rank), scale))
        return factors

    def _basis(self, weight: Weight) -> tuple[Tensor, Tensor]:
        """Returns U and V of the current period, shapes (n, r) and (d, r), float32."""
        bases = self._bases.get(weight)
        if bases is None:
            theta = weight.parameter
            rows, columns = theta.shape[0], theta[0].numel()
            rank = min(self.rank, rows, columns)
            keys = [fold_in(self._period, weight.key, side) for side in (0, 1)]
            u, v = (
                torch.linalg.qr(self._normal(key, weight, size, rank)).Q
                for key, size in zip(keys, (rows, columns), strict=True)
            )
            bases = self._bases[weight] = (u, v)
        return bases

    def _normal(self, key: int, weight: Weight, rows: int, columns: int) -> Tensor:
        device = weight.parameter.device
        generator = self._generators.seeded(key, device)
        return torch.randn(rows, columns, generator=generator, device=device, dtype=torch.float32)

    def scratch_bytes(self) -> int:
        """Returns the bytes of pools, buffers, U and V; see ``Stage.scratch_bytes``."""
        return super().scratch_bytes() + sum(u.nbytes + v.nbytes for u, v in self._bases.values())
