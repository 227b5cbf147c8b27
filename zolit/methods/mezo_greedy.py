"""MeZO-Greedy: the best of several probes, arXiv 2601.04710."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.methods.base import Method
from zolit.optim import Greedy


class MeZOGreedy(Method):
    """Probes M directions and makes MeZO's step along the one with the lowest loss.

    z* = argmin L(θ + εzᵢ), g = [L(θ + εz*) - L(θ - εz*)] / 2ε and θ ← θ - ηgz*. The default of M is the paper's.

    Args:
        directions: M, the number of directions.
    """

    about: ClassVar = About(
        paper="MeZO-Greedy, arXiv 2601.04710",
        stages="M directions, greedy choice",
        forwards="M + 2",
        forwards_by_default=6,
        memory="none",
        when="you compare with the paper; at equal forwards, MeZO with q directions is not worse",
        page="mezo-greedy.md",
    )

    def __init__(self, model: nn.Module, *, directions: int = 4, **shared: Any) -> None:
        super().__init__(model, estimator=Greedy(directions), **shared)
