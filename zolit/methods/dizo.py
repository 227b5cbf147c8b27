"""DiZO: layer-wise projections of the distance from the initial weights, arXiv 2502.03304."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.methods.base import MethodBase, Probing, prober_for
from zolit.optim import SGD, SPSA, LayerProjection, Rounding


class DiZO(MethodBase):
    """MeZO and, every κ steps, a search for the distance of each projected weight from its initial value.

    ‖θ - θ0‖ of each value and key projection changes within (1 ± τ), by ten zeroth-order steps along random scalars.
    ε, ε_p, the inner rate and τ are within the published grids. ``zolit.optim.LayerProjection`` has the details.

    Args:
        every: κ, the number of steps between two projections.
        inner_steps: Steps of a projection. Each takes two forwards.
        radius: ε_p, the probe radius of a projection.
        inner_rate: Learning rate of a projection's steps.
        clip: τ, the largest relative change of a distance in a projection.
        pattern: Regular expression. Weights in whose names it finds a match are projected.
    """

    about: ClassVar = About(
        paper="DiZO, arXiv 2502.03304",
        stages="MeZO with layer-wise projections",
        forwards="2, and 20 more every κ steps",
        forwards_by_default=2,
        memory="a copy of the projected weights",
        when="layers drift at different speeds and a copy of the projected weights fits",
        page="dizo.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 50,
        inner_steps: int = 10,
        radius: float = 0.1,
        inner_rate: float = 2.0,
        clip: float = 0.2,
        pattern: str = r"(v|k)_proj\.(.*\.)?weight$",
        probing: Probing = "streamed",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        update_rounding: Rounding = "stochastic",
        **shared: Any,
    ) -> None:
        descent = SGD(momentum, weight_decay, update_rounding)
        super().__init__(
            model,
            prober=prober_for(probing),
            estimator=SPSA(),
            update=LayerProjection(descent, every, inner_steps, radius, inner_rate, clip, pattern),
            **shared,
        )
