"""The options that methods share."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

from torch import nn

from zolit.errors import require_one_of
from zolit.methods.about import About
from zolit.optim import (
    SGD,
    Estimator,
    InPlace,
    LearningRate,
    NoProbes,
    Perturbation,
    Prober,
    Rounding,
    Selection,
    Streamed,
    Update,
    ZerothOrder,
)

Probing = Literal["streamed", "joint", "in_place"]
"""How losses at perturbed weights are computed:

- ``streamed``: modules compute with perturbed weights, piece by piece; the weights themselves are never written.
- ``joint``: as ``streamed``, but both probes of a pair share one forward pass of twice the batch. This is faster where
  one batch does not fill the device, and takes the memory of twice the activations.
- ``in_place``: the weights are perturbed and restored; weights of 16 bits are restored from a copy.
"""


def prober_for(probing: Probing) -> Prober:
    """Returns a new prober.

    Raises:
        UserError: If ``probing`` is not one of the three names.
    """
    require_one_of("probing", probing, get_args(Probing))
    return InPlace() if probing == "in_place" else Streamed(joint=probing == "joint")


class MethodBase(ZerothOrder):
    """Base class of all methods: the options that each method has unless it fixes them.

    The docstring also describes the options that only some methods have, such as ``momentum``.
    ``zolit fit --model.optimizer.help`` takes the text of an option from the method's docstring or, where that does not
    mention the option, from here. A method derives from this class directly if it has no choice of the prober or if
    its update is not ``SGD``. Methods without probes derive from ``Unprobed``, and all others from ``Method``.

    Args:
        model: The model. Its parameters that require a gradient are tuned.
        prober: How losses at perturbed weights are computed. A subclass fixes it.
        estimator: How the losses of a step's probes become coefficients of its directions. A subclass fixes it.
        update: How the weights move. A subclass fixes it.
        lr: η, the learning rate. auto measures it on the first batches; see docs/learning-rate.md.
        eps: ε, the probe radius.
        seed: Base seed of all random numbers of the method; null is seed_everything, or 0 without the command line.
        blocks: How the weights are partitioned into blocks for the selection: tensor, layer, or a regular expression
            (weights in whose names it finds the same text form a block).
        selection: Which blocks move in a step. None selects all blocks.
        perturbation: The law (probability distribution) of the random directions z. None is GaussianPool.
        probing: How losses at perturbed weights are computed: streamed (the weights are never written), joint (two
            probes share a forward pass: meant for small batches, twice the activations) or in_place (the weights are
            perturbed and restored).
        momentum: μ of SGD. Any value except 0 keeps four bytes for each trainable parameter.
        weight_decay: λ, the weight decay. It applies to weights of two dimensions or more.
        update_rounding: How updates of 16-bit weights are rounded: stochastic (right on average) or nearest (drops
            small updates).
        max_skipped: Stop the run after this many consecutive steps with a loss that is not finite.

    Attributes:
        about: The description of the method.

    Raises:
        UserError: If an option is out of its range, options contradict each other, or the model has no trainable
            parameter.
    """

    about: ClassVar[About]

    def __init__(
        self,
        model: nn.Module,
        *,
        prober: Prober,
        estimator: Estimator,
        update: Update,
        lr: LearningRate = "auto",
        eps: float = 1e-3,
        seed: int | None = None,
        blocks: str = "tensor",
        selection: Selection | None = None,
        perturbation: Perturbation | None = None,
        max_skipped: int = 10,
    ) -> None:
        super().__init__(
            model,
            lr=lr,
            eps=eps,
            seed=seed,
            blocks=blocks,
            selection=selection,
            perturbation=perturbation,
            prober=prober,
            estimator=estimator,
            update=update,
            max_skipped=max_skipped,
        )


class Method(MethodBase):
    """A method that moves weights by SGD and leaves the choice of the prober to the user.

    A subclass names its own options and the shared options whose default differs. It passes all others on:
    ``super().__init__(model, estimator=..., **shared)``. The command line reads this call from the source code to find
    the options. The call must therefore stand once, outside of any branch. An option that the call fixes is refused.
    ``MethodBase`` documents the shared options.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        estimator: Estimator,
        probing: Probing = "streamed",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        update_rounding: Rounding = "stochastic",
        **shared: Any,
    ) -> None:
        super().__init__(
            model,
            prober=prober_for(probing),
            estimator=estimator,
            update=SGD(momentum, weight_decay, update_rounding),
            **shared,
        )


class Unprobed(MethodBase):
    """A method that probes nothing, because its update finds out by itself how to move all weights.

    A subclass names its own options, and passes all others on as with ``Method``. ``MethodBase`` documents the shared
    options.
    """

    def __init__(self, model: nn.Module, *, update: Update, **shared: Any) -> None:
        super().__init__(
            model,
            blocks="tensor",
            selection=None,
            perturbation=None,
            prober=Streamed(),
            estimator=NoProbes(),
            update=update,
            **shared,
        )
