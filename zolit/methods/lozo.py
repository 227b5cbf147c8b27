"""LOZO: low-rank directions with one factor that changes rarely, arXiv 2410.07698."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.methods.base import Method
from zolit.optim import SPSA, LazyLowRank


class LOZO(Method):
    """MeZO along UVᵀ for each matrix, where V stays for ν steps.

    The paper probes at θ ± εUVᵀ, which gives the difference c, and moves by η c UVᵀ/r. With u = UVᵀ/√r, whose entries
    have variance 1, this is a step of MeZO along u with the probe radius ε√r and the same η.
    The step is computed in this form.

    Departures: the published code leaves 1/r out and moves by η c UVᵀ. An η of that code is therefore equal to r times
    as much here. LOZO-M, momentum within the subspace, is not implemented.

    Args:
        eps: ε, the probe radius along UVᵀ.
        rank: r, the rank of the direction of a matrix.
        refresh: ν, the number of steps for which V stays.
    """

    about: ClassVar = About(
        paper="LOZO, arXiv 2410.07698",
        stages="low-rank directions, one factor kept for ν steps",
        forwards="2",
        forwards_by_default=2,
        memory="d·r numbers per matrix",
        when="drawing and adding dense noise takes a large part of the step's time",
        page="lozo.md",
    )

    def __init__(self, model: nn.Module, *, eps: float = 1e-3, rank: int = 2, refresh: int = 50, **shared: Any) -> None:
        super().__init__(
            model,
            eps=eps * max(rank, 1) ** 0.5,
            perturbation=LazyLowRank(rank, refresh),
            estimator=SPSA(),
            **shared,
        )
