"""Sparse-MeZO: small weights only, arXiv 2402.15751."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.methods.base import Method
from zolit.optim import SPSA, SmallWeights


class SparseMeZO(Method):
    """MeZO on the smallest weights of each tensor.

    The mask m is 1 where |θ|, before the first step, is among the smallest share of its tensor. Probes and updates use
    the direction m ⊙ z.

    Args:
        density: Share of each tensor that moves.
        refresh: Steps between two masks. 0 keeps the first.
    """

    about: ClassVar = About(
        paper="Sparse-MeZO, arXiv 2402.15751",
        stages="selection of small weights",
        forwards="2",
        forwards_by_default=2,
        memory="one bit per weight",
        when="MeZO diverges: it tolerates higher learning rates than MeZO, because only small weights move",
        page="sparse-mezo.md",
    )

    def __init__(self, model: nn.Module, *, density: float = 0.25, refresh: int = 0, **shared: Any) -> None:
        super().__init__(model, selection=SmallWeights(density, refresh), estimator=SPSA(), **shared)
