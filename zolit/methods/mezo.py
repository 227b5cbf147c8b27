"""MeZO: Malladi et al., Fine-Tuning Language Models with Just Forward Passes, arXiv 2305.17333, Algorithm 1."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.methods.base import Method
from zolit.optim import SPSA


class MeZO(Method):
    """Moves all weights along one Gaussian direction, by the difference of two losses.

    Δ = [L(θ + εz) - L(θ - εz)] / 2ε and θ ← θ - η(Δz + λθ) with z ~ N(0, I). ε is ``eps``, η is ``lr`` and λ is
    ``weight_decay``.

    ε is the paper's for full-parameter tuning of OPT. The paper has η in {1e-6, 1e-7} there. Models below a billion
    parameters need a larger η; the default measures it.

    Departures from the published code: z is drawn in float32 for weights of any type. Probes do not write the weights.
    Weights of 16 bits are updated with stochastic rounding. Weights of one dimension do not decay; the
    published code excludes certain names instead.

    Args:
        directions: q, the number of directions to average over (n-SPSA). A step takes 2q forwards.
    """

    about: ClassVar = About(
        paper="MeZO, arXiv 2305.17333",
        stages="all blocks, Gaussian directions, two-point SPSA, SGD",
        forwards="2q",
        forwards_by_default=2,
        memory="none",
        when="memory allows nothing else; it is the baseline of all methods",
        page="mezo.md",
    )

    def __init__(self, model: nn.Module, *, directions: int = 1, **shared: Any) -> None:
        super().__init__(model, estimator=SPSA(directions), **shared)
