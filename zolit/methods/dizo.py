"""DiZO: layer-wise projections of how far weights have gone, arXiv 2502.03304."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.optimizer import ZerothOrder
from zolit.perturbation import Perturbation
from zolit.probing import Probing, prober_for
from zolit.rounding import Rounding
from zolit.updates import SGD, LayerProjection


class DiZO(ZerothOrder):
    """MeZO and, every κ steps, a search for how far each projected layer should be from where it began.

    ‖θ - θ0‖ of each value and key projection is moved, within (1 ± τ), by ten zeroth-order steps of its own. ε,
    ε_p, the inner rate and τ are of the published grids; ``zolit.updates.LayerProjection`` has the details.

    Args:
        model: The model; its parameters that require a gradient are tuned.
        lr: η, the learning rate.
        eps: ε, the probe radius.
        seed: Seed of the directions.
        every: κ.
        inner_steps: Steps of a projection, two forwards each.
        radius: ε_p.
        inner_rate: Rate of a projection's steps.
        clip: τ.
        pattern: Regular expression; weights in whose names it finds something are projected.
        perturbation: The law of z; None is GaussianPool.
        probing: streamed (the weights are never written), joint (two probes share a forward) or in_place.
        momentum: μ of the descent; anything but 0 keeps four bytes for every trainable parameter.
        weight_decay: λ, for weights of two dimensions or more.
        update_rounding: Of weights of 16 bits: stochastic (right on average) or nearest (drops small updates).
        max_skipped: Stop when so many steps in a row had a loss that was not finite.

    Raises:
        UserError: If a number is out of its range, or the model has no trainable parameter.
    """

    about: ClassVar = About(
        paper="DiZO, arXiv 2502.03304",
        rooms="MeZO with layer-wise projections",
        forwards="2, and 20 more every κ steps",
        forwards_by_default=2,
        memory="a copy of the projected weights",
        when="layers drift at different speeds and a copy of some fits",
        page="dizo.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-6,
        eps: float = 1e-3,
        seed: int = 0,
        every: int = 50,
        inner_steps: int = 10,
        radius: float = 0.1,
        inner_rate: float = 2.0,
        clip: float = 0.2,
        pattern: str = r"(v|k)_proj\.(.*\.)?weight$",
        perturbation: Perturbation | None = None,
        probing: Probing = "streamed",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        update_rounding: Rounding = "stochastic",
        max_skipped: int = 10,
    ) -> None:
        super().__init__(
            model,
            lr=lr,
            eps=eps,
            seed=seed,
            perturbation=perturbation,
            prober=prober_for(probing),
            update=LayerProjection(
                SGD(momentum, weight_decay, update_rounding),
                every,
                inner_steps,
                radius,
                inner_rate,
                clip,
                pattern,
                seed,
            ),
            max_skipped=max_skipped,
        )
