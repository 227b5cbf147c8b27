"""Dominant-Layer ZO: tunes one layer, arXiv 2606.05516."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.methods.base import Method
from zolit.optim import SPSA, OneLayer, Selection


class DominantLayer(Method):
    """MeZO on one decoder layer: the first one with massive activations.

    One forward before the first step finds the layer. The layers below it are computed once for both probes. The
    paper's rule was recovered only in words. ``zolit.optim.OneLayer`` describes the rule that is used instead.

    Args:
        layer: Index of the layer, from 0. None searches for it.
        magnitude: Smallest absolute value of a massive activation.
        ratio: Smallest ratio of a massive activation to the median.
        within: Which blocks of the layer move in a step. None selects all of them.
    """

    about: ClassVar = About(
        paper="Dominant-Layer ZO, arXiv 2606.05516",
        stages="selection of one layer",
        forwards="2",
        forwards_by_default=2,
        memory="none",
        when="perturbing and updating take long compared with the forwards, or the tuned weights must be few to ship",
        page="dominant-layer.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        layer: int | None = None,
        magnitude: float = 100.0,
        ratio: float = 1000.0,
        within: Selection | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(model, selection=OneLayer(layer, magnitude, ratio, within), estimator=SPSA(), **shared)
