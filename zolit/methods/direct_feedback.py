"""Direct feedback: the gradient at the last hidden state, carried down by Jacobians that forwards have measured."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.methods.base import Unprobed
from zolit.optim import Feedback, Rounding, RuleName, rule_of


class DirectFeedback(Unprobed):
    """Trains what writes into the residual stream of the last layers, with one forward and no backward pass through it.

    δ = ∂loss/∂h_L at the last hidden state h_L is exact: autograd runs through the final norm, the head and the loss
    alone. Where the loss has no gradient, probes of these three alone estimate δ. δ_l = (I + A_l)ᵀ δ_{l+1} carries it
    down, where A_l is the mean Jacobian of what layer l adds. Forwards with noise in the hidden states measure all A_l:
    in the first step, or once for a model (``zolit calibrate``). Each matrix W whose product is added to the residual
    stream then moves along Σ δ xᵀ, by default with Adam, where x is its input. The result is biased: it takes the mean
    Jacobian of all tokens for that of each token.

    The method is of this project. ``docs/methods/direct-feedback.md`` has the derivation, the measurements and the
    relatives, such as direct feedback alignment (Nøkland, arXiv 1609.01596).

    Args:
        eps: Not used, because nothing is probed.
        rule: How a weight moves by S: adam (eight bytes of state for each trained weight), sgd (no state) or factored
            (AdaLomo, arXiv 2310.10195: one number for each row and column; the rate is relative to the size of a
            weight).
        betas: Weights of the old averages in Adam; not used by other rules.
        layers: How many layers, counted from the last, are trained. None is two thirds of all layers.
        calibration: Number of forwards with noise in the first step, from which the Jacobians are learned. 0 takes all
            layers for the identity.
        refresh: Number of steps from one correction of the Jacobians to the next. Training moves the weights, so that
            the Jacobians of the first step fit less and less. A correction takes one forward with noise. 0 corrects
            nothing. Not used with the identity.
        jacobians: A file that ``zolit calibrate`` has written for the base model. Its Jacobians are taken, and the
            first step makes no forwards with noise. null learns them in the first step.
        head: Train the weights after the last layer too (final norm, head), by their exact gradients.
        head_probes: For losses without a gradient (``model.objective metric``): number of pairs of random moves of the
            last hidden state in a step. Each move computes final norm, head and loss again, and no layer.
    """

    about: ClassVar = About(
        paper="of this project, after direct feedback alignment, arXiv 1609.01596",
        stages="no probes, Adam on gradients that learned mean Jacobians carry down",
        forwards="1, and one more in every tenth; 18 in the first step, or 2 with a file of Jacobians",
        forwards_by_default=1,
        memory="d² numbers per layer, inputs at the loss's tokens, eight bytes per trained weight (factored: few)",
        when="few forwards must do, and a backward pass does not fit into memory",
        page="direct-feedback.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 4e-4,
        rule: RuleName = "adam",
        betas: tuple[float, float] = (0.9, 0.99),
        layers: int | None = None,
        calibration: int = 16,
        refresh: int = 10,
        jacobians: str | None = None,
        head: bool = False,
        head_probes: int = 64,
        weight_decay: float = 0.0,
        update_rounding: Rounding = "stochastic",
        **shared: Any,
    ) -> None:
        moves = rule_of(rule, betas, weight_decay, update_rounding)
        super().__init__(
            model,
            lr=lr,
            update=Feedback(moves, layers, calibration, refresh, head, jacobians, head_probes),
            **shared,
        )
