"""Per-example directions: every example of the batch is a probe of its own."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from zolit.estimators import PerExampleSPSA
from zolit.methods.about import About
from zolit.optimizer import ZerothOrder
from zolit.perturbation import ActivationGuided, LowRank
from zolit.probing import Individual
from zolit.rounding import Rounding
from zolit.selection import Selection
from zolit.updates import SGD


class PerExample(ZerothOrder):
    """Each example of the batch sees a low-rank direction of its own; two forwards give ``batch`` derivatives.

    y = x Wᵀ ± ε (x·bᵢ) aᵢ for example i, Δᵢ = [Lᵢ(θ + εuᵢ) - Lᵢ(θ - εuᵢ)] / 2ε, uᵢ = aᵢbᵢᵀ, and
    W ← W - η Σᵢ Δᵢ aᵢbᵢᵀ / batch. By default bᵢ lies within the span of the example's own activations at the
    layer, where the rows of its gradient lie (after AGZO, arXiv 2601.17261): the estimate is the gradient, as MeZO's is
    (arXiv 2305.17333), but for what only nearly dependent tokens show, and its noise lies where gradients can lie.
    Embeddings have no such side; their directions are of 0.3 of the length, their estimate of 0.09. With
    ``guided=False`` b is normal everywhere. One direction for each example at no extra forward is also GRZO's (arXiv
    2606.02857), low rank within the product EGGROLL's (arXiv 2511.16652). Matrices, embeddings among them, get
    directions of low rank; norms and biases dense ones.

    ``docs/per-example.md`` has the derivation, what was measured, and how the options were chosen.

    Args:
        model: The model; its parameters that require a gradient are tuned. ``zolit.probing.Individual`` says which
            models will do.
        lr: η, the learning rate.
        eps: ε, the probe radius.
        seed: Seed of the directions.
        rank: Of a matrix' direction.
        guided: Draw the input side b from the span of the example's own activations.
        normalize: Divide the Δ of a step by their root mean square.
        blocks: How the weights are partitioned for the selection: tensor, layer or a regular expression.
        selection: Which blocks move; None is all of them.
        momentum: μ of the descent; anything but 0 keeps four bytes for every trainable parameter.
        weight_decay: λ, for weights of two dimensions or more.
        update_rounding: Of weights of 16 bits: stochastic (right on average) or nearest (drops small updates).
        max_skipped: Stop when so many steps in a row had a loss that was not finite.

    Raises:
        UserError: If a number is out of its range, or the model has no trainable parameter.
    """

    about: ClassVar = About(
        paper="after GRZO, arXiv 2606.02857, EGGROLL, arXiv 2511.16652, and AGZO, arXiv 2601.17261",
        rooms="low-rank directions for each example, probed apart",
        forwards="2",
        forwards_by_default=2,
        memory="factors of directions, a few megabytes",
        when="the fewest forwards; models of linear, embedding and norm layers",
        page="../per-example.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 4e-5,
        eps: float = 1e-3,
        seed: int = 0,
        rank: int = 1,
        guided: bool = True,
        normalize: bool = False,
        blocks: str = "tensor",
        selection: Selection | None = None,
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
            blocks=blocks,
            selection=selection,
            perturbation=ActivationGuided(rank) if guided else LowRank(rank),
            prober=Individual(),
            estimator=PerExampleSPSA(normalize),
            update=SGD(momentum, weight_decay, update_rounding),
            max_skipped=max_skipped,
        )
