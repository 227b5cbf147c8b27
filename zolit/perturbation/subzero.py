"""Directions within a subspace of each matrix that is drawn anew every so many steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zolit.blocks import Weight
from zolit.errors import require
from zolit.hashing import mix, name_key
from zolit.perturbation.factors import Factors
from zolit.perturbation.low_rank import LowRank
from zolit.scratch import Generators

_BASES = name_key("orthogonal bases")


class OrthogonalSubspace(LowRank):
    """Δ = U Z Vᵀ with orthonormal U, V that stay for some steps and Z ~ N(0, 1) (SubZero, arXiv 2410.08989).

    E[⟨G, Δ⟩ Δ] = UUᵀ G VVᵀ, without the scale: the gradient's projection. Vectors get dense normal directions. U and V
    are functions of (seed, step // refresh, weight), so that a resumed run finds them again; between two refreshes they
    are kept, (n + d)·rank numbers for a matrix of shape (n, d).

    Args:
        rank: r; of a smaller matrix its smaller side.
        refresh: Steps for which U and V stay.
        scale: Multiply by √(nd)/r, as the published code does: Δ is then about as long as a dense direction.

    Raises:
        UserError: If the rank or the number of steps is not positive.
    """

    def __init__(self, rank: int = 24, refresh: int = 1000, scale: bool = True) -> None:
        super().__init__(rank)
        require(refresh >= 1, f"refresh: a subspace must stay for at least 1 step, not {refresh}")
        self._refresh = refresh
        self._scale = scale
        self._period = 0
        self._bases: dict[Weight, tuple[Tensor, Tensor]] = {}
        self._generators = Generators()

    def begin(self, seed: int, step: int) -> None:
        """Forgets the bases where a new period begins; see the base class."""
        super().begin(seed, step)
        period = mix(seed, _BASES, step // self._refresh)
        if period != self._period:
            self._period = period
            self._bases.clear()

    def factors(self, weight: Weight, keys: Sequence[int]) -> Factors:
        """Returns UZ and V of several directions of a weight; see the base class."""
        theta = weight.parameter
        if theta.ndim == 1:
            return super().factors(weight, keys)
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
        """Returns U and V of the present period, shapes (n, r) and (d, r), float32."""
        bases = self._bases.get(weight)
        if bases is None:
            theta = weight.parameter
            rows, columns = theta.shape[0], theta[0].numel()
            rank = min(self.rank, rows, columns)
            keys = [mix(self._period, weight.key, side) for side in (0, 1)]
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
        """Returns the bytes of pools, buffers and bases."""
        return super().scratch_bytes() + sum(u.nbytes + v.nbytes for u, v in self._bases.values())
