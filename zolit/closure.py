"""What a step is given to evaluate, and a look at it before anything is perturbed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zolit.blocks import Weight
from zolit.errors import require
from zolit.ranks import Ranks

Closure = Callable[[], Tensor]
"""Returns a batch's mean loss, shape (), or each example's loss, shape (batch,), at the weights as they are."""


class NotFinite(Exception):
    """A loss is NaN or infinite; the step is skipped."""


def mean_losses(closure: Closure, copies: int = 1) -> Tensor:
    """Calls a closure and returns the mean loss of each copy of its batch.

    Returns:
        Shape (copies,), float32 or, where the closure's is, float64.
    """
    # Under torch.autocast, weights cast to low precision are cached and the cache does not see that they were moved.
    torch.clear_autocast_cache()
    loss = closure()
    return (loss if loss.dtype == torch.float64 else loss.float()).reshape(copies, -1).mean(1)


class Look:
    """The loss at the weights as they are, for rooms that must see something before a step can be chosen or drawn.

    Every call is a forward pass and is counted as one. An estimator that asks for the loss at θ, a row of zeros, is
    answered from here where somebody has looked already.

    Args:
        model: The model, for those who watch its modules meanwhile.
        closure: The step's.
        ranks: The processes that are to agree.

    Attributes:
        step: Index of the step, from 0.
        losses: What was seen, one number a forward.
        backwards: How many of them were gone back through.
        at_theta: The latest loss, where θ has not moved since; None where nobody looked.
    """

    def __init__(self, model: nn.Module, closure: Closure, ranks: Ranks, step: int) -> None:
        self.model = model
        self.ranks = ranks
        self.step = step
        self.losses: list[float] = []
        self.backwards = 0
        self.at_theta: float | None = None
        self._closure = closure

    def __call__(self) -> float:
        """Evaluates the batch at θ.

        Returns:
            Its mean loss, over all ranks.

        Raises:
            NotFinite: If that is NaN or infinite.
        """
        return self._seen(mean_losses(self._closure))

    def gradients(self, weights: Sequence[Weight]) -> dict[Weight, Tensor]:
        """Evaluates the batch at θ and goes back through it: the one thing here that is not a forward pass.

        Args:
            weights: Those whose gradients are wanted; activations are kept for these alone.

        Returns:
            The gradient of the mean loss of all ranks for each, of the weight's shape and type.

        Raises:
            NotFinite: If the loss is NaN or infinite.
            UserError: If the closure computes without gradients.
        """
        with torch.enable_grad(), _only(self.model, weights):
            torch.clear_autocast_cache()
            loss = self._closure().float().mean()
            require(
                loss.requires_grad,
                "step: this method needs gradients, and the closure forms none; take `torch.no_grad` out of it",
            )
            found = torch.autograd.grad(loss, [weight.parameter for weight in weights], allow_unused=True)
        torch.clear_autocast_cache()
        self.backwards += 1
        self._seen(loss.detach().view(1))
        return {
            weight: self.ranks.mean(torch.zeros_like(weight.parameter) if own is None else own.contiguous())
            for weight, own in zip(weights, found, strict=True)
        }

    def _seen(self, own: Tensor) -> float:
        loss = float(self.ranks.mean(own).cpu().double())
        self.losses.append(loss)
        self.at_theta = loss
        if not math.isfinite(loss):
            raise NotFinite
        return loss


@contextmanager
def _only(model: nn.Module, weights: Sequence[Weight]) -> Iterator[None]:
    """Has no weight of the model but these require a gradient."""
    wanted = {id(weight.parameter) for weight in weights}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in wanted]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
