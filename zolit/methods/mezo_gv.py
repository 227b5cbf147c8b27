"""MeZO-GV: a guiding vector from several probes, arXiv 2601.04710."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.methods.base import Method
from zolit.optim import Guiding


class MeZOGV(Method):
    """Makes MeZO's step along v: the mean of the probes with low losses minus the mean of the others.

    v = mean of the best ⌊αM⌋ zᵢ - mean of the rest, ranked by L(θ + εzᵢ). Then g = [L(θ + εv) - L(θ - εv)] / 2ε and
    θ ← θ - ηgv. The defaults of M and α are the paper's. With M = 2 and α = 1/2 this is MeZO along z₁ - z₂, and two of
    the four forwards are wasted.

    Args:
        directions: M, the number of probes.
        share: α, the share of the probes that count as good.
    """

    about: ClassVar = About(
        paper="MeZO-GV, arXiv 2601.04710",
        stages="M directions, guiding vector",
        forwards="M + 2",
        forwards_by_default=6,
        memory="none",
        when="you compare with the paper; at equal forwards, MeZO with q directions is not worse",
        page="mezo-gv.md",
    )

    def __init__(self, model: nn.Module, *, directions: int = 4, share: float = 0.5, **shared: Any) -> None:
        super().__init__(model, estimator=Guiding(directions, share), **shared)
