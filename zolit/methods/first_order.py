"""First-order training by backpropagation, for comparison, with as little memory as it can do with."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.methods.base import Unprobed
from zolit.optim import Backprop, FusedBackprop, Rounding, Rule, RuleName, Update, rule_of
from zolit.optim.modules.layers import train_last_layers


class FirstOrder(Unprobed):
    """Trains by backpropagation, by default with AdamW (arXiv 1711.05101): the baseline of the other methods.

    A step takes one forward and one backward pass. By default it keeps the activations of all layers, the gradients of
    all trainable weights and AdamW's averages, which zeroth-order methods do not. The options ``recompute``,
    ``keep_gradients``, ``rule`` and ``layers`` save memory, each for itself.

    Args:
        rule: How a weight moves by its gradient: adam (AdamW, eight bytes of state for each weight), sgd (no state) or
            factored (AdaLomo, arXiv 2310.10195: one number for each row and column of a matrix; the rate is relative
            to the size of a weight).
        keep_gradients: Keep all gradients until the backward pass ends. false moves each weight as soon as its gradient
            arrives (LOMO, arXiv 2306.09782), and keeps none. A step whose gradient is not finite then moves the other
            weights, and micro_batch_size keeps gradients all the same.
        recompute: Compute each layer again in the backward pass, and keep its input alone of its activations. This
            takes the time of one more forward.
        layers: Train the last so many layers alone: their weights, and neither embedding nor output head. No gradient
            is computed below them. null trains all weights that model.tuning chooses.
        eps: Not used, because nothing is probed.
        betas: Weights of the old averages in Adam; not used by other rules.
    """

    about: ClassVar = About(
        paper="AdamW, arXiv 1711.05101",
        stages="no probes, Adam on true gradients",
        forwards="1",
        forwards_by_default=1,
        memory="gradients, activations, eight bytes per weight; options avoid most of it",
        when="a backward pass fits into memory; it is the baseline of all others",
        page="first-order.md",
        backwards=1,
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-5,
        rule: RuleName = "adam",
        keep_gradients: bool = True,
        recompute: bool = False,
        layers: int | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        update_rounding: Rounding = "stochastic",
        **shared: Any,
    ) -> None:
        if layers is not None:
            train_last_layers(model, layers)
        moves = rule_of(rule, betas, weight_decay, update_rounding)
        super().__init__(
            model,
            lr=lr,
            update=_update(moves, keep_gradients, recompute),
            **shared,
        )


def _update(rule: Rule, keep_gradients: bool, recompute: bool) -> Update:
    return Backprop(rule, recompute=recompute) if keep_gradients else FusedBackprop(rule, recompute)
