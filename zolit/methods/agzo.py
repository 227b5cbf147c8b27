"""AGZO: directions in the span of a batch's activations, arXiv 2601.17261."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.methods.base import Method
from zolit.optim import SPSA, ActivationSubspace, OneSided


class AGZO(Method):
    """Moves matrices of linear layers along RAᵀ, where A holds the leading inputs of the step's batch.

    The gradient of Y = XWᵀ lies in the row space of X. One forward at θ gives A, by power iterations, and L(θ). Then
    g = [L(θ + εΔ) - L(θ)] / ε and θ ← θ - ηgΔ, so that E[ĝ] = G AAᵀ. All other weights get dense directions.
    ``zolit.optim.ActivationSubspace`` has the details.

    Args:
        rank: r, the rank of the direction of a matrix.
        iterations: K, the number of power iterations.
        two_sided: Use central differences. They cost one more forward per step.
    """

    about: ClassVar = About(
        paper="AGZO, arXiv 2601.17261",
        stages="directions in the span of the batch's activations, one-sided difference",
        forwards="2; two-sided 3",
        forwards_by_default=2,
        memory="d·r numbers per matrix",
        when="linear layers hold most weights and you can tune ε and η again",
        page="agzo.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = 1e-4,
        rank: int = 1,
        iterations: int = 3,
        two_sided: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(
            model,
            eps=eps,
            perturbation=ActivationSubspace(rank, iterations),
            estimator=SPSA() if two_sided else OneSided(),
            **shared,
        )
