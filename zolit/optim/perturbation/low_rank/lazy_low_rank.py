"""Low-rank directions whose input side changes only every few steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zolit.errors import require
from zolit.optim.blocks import Weight
from zolit.optim.perturbation.factored import Factors
from zolit.optim.perturbation.low_rank.pooled import Cut, PooledFactors
from zolit.optim.randomness import Generators, Step, fold_in, key_of

_SIDES = key_of("lazy sides")


class LazyLowRank(PooledFactors):
    """Draws Δ = UVᵀ/√r, with U ~ N(0, 1) every step and V ~ N(0, 1) every few steps (LOZO, arXiv 2410.07698).

    Given V, E[⟨G, Δ⟩ Δ] = G VVᵀ/r. The mean of this over V is G. Vectors and single numbers get dense normal
    directions. V is a function of (seed, step // refresh, weight) only. Probes and update therefore use the same V,
    also on a step on which V changes. A resumed run uses the same V too.

    Args:
        rank: r.
        refresh: ν, the number of steps for which V stays constant.

    Raises:
        UserError: If the rank or the number of steps is not positive.
    """

    def __init__(self, rank: int = 2, refresh: int = 50) -> None:
        super().__init__(rank)
        require(refresh >= 1, f"refresh: the steps for which a side stays must be at least 1, not {refresh}")
        self._refresh = refresh
        self._period = 0
        self._sides: dict[Weight, Tensor] = {}
        self._generators = Generators()

    def begin_step(self, step: Step) -> None:
        """Drops V if a new period begins; see ``Perturbation.begin_step``."""
        super().begin_step(step)
        period = fold_in(step.seed, _SIDES, step.index // self._refresh)
        if period != self._period:
            self._period = period
            self._sides.clear()

    def _make_factors(self, weight: Weight, keys: Sequence[int], cut: Cut) -> Factors:
        factors = super()._make_factors(weight, keys, cut)
        if weight.parameter.ndim < 2:
            return factors
        side = self._sides.get(weight)
        if side is None:
            generator = self._generators.seeded(fold_in(self._period, weight.key), weight.parameter.device)
            side = torch.empty(factors.inputs.shape[1:], dtype=torch.float32, device=weight.parameter.device)
            side = self._sides[weight] = side.normal_(generator=generator).to(factors.inputs.dtype)
        return factors._replace(inputs=side.expand_as(factors.inputs))

    def scratch_bytes(self) -> int:
        """Returns the bytes of pools, buffers and V; see ``Stage.scratch_bytes``."""
        return super().scratch_bytes() + sum(side.nbytes for side in self._sides.values())
