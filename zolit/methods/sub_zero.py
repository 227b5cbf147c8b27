"""SubZero: random subspaces of each matrix, arXiv 2410.08989."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.methods.base import Method
from zolit.optim import SPSA, OrthogonalSubspace


class SubZero(Method):
    """MeZO along U Z Vᵀ for each matrix, where U and V are orthonormal and stay for T0 steps.

    Z ~ N(0, 1) of shape (r, r) is drawn every step. Norms and biases get dense directions. With ``scale`` directions
    are about as long as dense ones, so that MeZO's ε and η can be used.
    ``zolit.optim.OrthogonalSubspace`` has the details.

    Args:
        rank: r. In a matrix with a smaller side, r is the length of this side.
        refresh: T0, the number of steps for which U and V stay.
        scale: Multiply directions by √(nd)/r, as the published code does.
    """

    about: ClassVar = About(
        paper="SubZero, arXiv 2410.08989",
        stages="directions in orthonormal low-rank subspaces",
        forwards="2",
        forwards_by_default=2,
        memory="(n + d)·r numbers per matrix",
        when="drawing and adding dense noise takes a large part of the step's time, also in MeZO-GV and MeZO-Greedy",
        page="sub-zero.md",
    )

    def __init__(
        self, model: nn.Module, *, rank: int = 24, refresh: int = 1000, scale: bool = True, **shared: Any
    ) -> None:
        super().__init__(model, perturbation=OrthogonalSubspace(rank, refresh, scale), estimator=SPSA(), **shared)
