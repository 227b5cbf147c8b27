"""Low-rank directions one of whose sides changes lazily."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zolit.blocks import Weight
from zolit.errors import require
from zolit.hashing import mix, name_key
from zolit.perturbation.factors import Factors
from zolit.perturbation.low_rank import Cut, LowRank
from zolit.scratch import Generators

_SIDES = name_key("lazy sides")


class LazyLowRank(LowRank):
    """Δ = UVᵀ/√r, U ~ N(0, 1) drawn every step, V ~ N(0, 1) every few steps (LOZO, arXiv 2410.07698).

    Given V, E[⟨G, Δ⟩ Δ] = G VVᵀ/r; over all V that is G. Vectors get dense normal directions. V is a function of
    (seed, step // refresh, weight) and of nothing else: probes and update find the same one also on the steps on which
    it changes, and so does a resumed run.

    Args:
        rank: r.
        refresh: ν, the steps for which V stays.

    Raises:
        UserError: If the rank or the number of steps is not positive.
    """

    def __init__(self, rank: int = 2, refresh: int = 50) -> None:
        super().__init__(rank)
        require(refresh >= 1, f"refresh: a side must stay for at least 1 step, not {refresh}")
        self._refresh = refresh
        self._period = 0
        self._sides: dict[Weight, Tensor] = {}
        self._generators = Generators()

    def begin(self, seed: int, step: int) -> None:
        """Forgets V where a new period begins; see the base class."""
        super().begin(seed, step)
        period = mix(seed, _SIDES, step // self._refresh)
        if period != self._period:
            self._period = period
            self._sides.clear()

    def _made(self, weight: Weight, keys: Sequence[int], cut: Cut) -> Factors:
        factors = super()._made(weight, keys, cut)
        if weight.parameter.ndim == 1:
            return factors
        side = self._sides.get(weight)
        if side is None:
            generator = self._generators.seeded(mix(self._period, weight.key), weight.parameter.device)
            side = torch.empty(factors.inputs.shape[1:], dtype=torch.float32, device=weight.parameter.device)
            side = self._sides[weight] = side.normal_(generator=generator).to(factors.inputs.dtype)
        return factors._replace(inputs=side.expand_as(factors.inputs))

    def scratch_bytes(self) -> int:
        """Returns the bytes of pools, buffers and sides."""
        return super().scratch_bytes() + sum(side.nbytes for side in self._sides.values())
