"""SensZOQ: a static mask of sensitive weights, arXiv 2406.02913."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.methods.base import Method
from zolit.optim import SPSA, SensitiveWeights


class SensZOQ(Method):
    """MeZO on the weights with the largest squared gradients, which one backward pass before the first step finds.

    Departures: the published method computes the mask from another corpus, offline, and quantises the other weights.
    Here the mask comes from the first batch, and the other weights keep their type.

    Args:
        density: Share of all weights that moves.
    """

    about: ClassVar = About(
        paper="SensZOQ, arXiv 2406.02913",
        stages="selection of a thousandth of the weights, by gradient",
        forwards="2",
        forwards_by_default=2,
        memory="one bit per weight",
        when="you want to ship a small set of changed weights, and one backward pass fits into memory",
        page="sens-zoq.md",
    )

    def __init__(self, model: nn.Module, *, density: float = 1e-3, **shared: Any) -> None:
        super().__init__(model, selection=SensitiveWeights(density), estimator=SPSA(), **shared)
