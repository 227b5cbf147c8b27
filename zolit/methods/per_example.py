"""One direction for each example of a batch, in two forward passes."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.methods.base import MethodBase
from zolit.optim import SGD, ActivationGuided, LowRank, PerExampleProber, PerExampleSPSA, Rounding


class PerExample(MethodBase):
    """Gives each example of the batch its own low-rank direction: two forwards measure ``batch`` derivatives.

    For example i, y = x Wᵀ ± ε (x·bᵢ) aᵢ, Δᵢ = [Lᵢ(θ + εuᵢ) - Lᵢ(θ - εuᵢ)] / 2ε with uᵢ = aᵢbᵢᵀ, and
    W ← W - η Σᵢ Δᵢ aᵢbᵢᵀ / batch. Matrices, embeddings among them, get low-rank directions. Norms and biases get dense
    directions.

    By default bᵢ lies in the span of the example's own activations at the layer, which also contains the rows of its
    gradient (after AGZO, arXiv 2601.17261). The estimate is then the gradient on average, as MeZO's is (arXiv
    2305.17333), except along directions that only nearly dependent tokens span. Its noise lies where gradients can lie.
    Embeddings have no such span: their directions have 0.3 of the length, and their estimate is 0.09 of the gradient.
    With ``guided=False`` b is normal everywhere.

    GRZO (arXiv 2606.02857) also has one direction per example without more forwards. EGGROLL (arXiv 2511.16652) also
    applies low-rank directions within the product. ``docs/per-example.md`` has the derivation, the measurements and the
    reasons for the defaults.

    Args:
        model: The model. Its parameters that require a gradient are tuned. ``zolit.optim.PerExampleProber`` says which
            models can be used.
        rank: The rank of the direction of a matrix.
        guided: Draw the input side b from the span of the example's own activations.
        normalize: Divide the Δ of a step by their root mean square.
    """

    about: ClassVar = About(
        paper="after GRZO, arXiv 2606.02857, EGGROLL, arXiv 2511.16652, and AGZO, arXiv 2601.17261",
        stages="a low-rank direction for each example",
        forwards="2",
        forwards_by_default=2,
        memory="factors of directions, a few megabytes",
        when="you want the fewest forwards, and the model has linear, embedding and norm layers only",
        page="../per-example.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        rank: int = 1,
        guided: bool = True,
        normalize: bool = False,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        update_rounding: Rounding = "stochastic",
        **shared: Any,
    ) -> None:
        super().__init__(
            model,
            perturbation=ActivationGuided(rank) if guided else LowRank(rank),
            prober=PerExampleProber(),
            estimator=PerExampleSPSA(normalize),
            update=SGD(momentum, weight_decay, update_rounding),
            **shared,
        )
