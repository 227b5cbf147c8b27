"""Evaluates the loss or its gradient at the base point θ of a step, before any weight is perturbed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from zolit.errors import require
from zolit.optim.blocks import Weight
from zolit.optim.collectives import Collectives
from zolit.optim.randomness import Step

Closure = Callable[[], Tensor]
"""Returns the mean loss of a batch, shape (), or the loss of each example, shape (batch,), at the current weights."""


class NotFinite(Exception):
    """Raised when a loss, a gradient or an estimate is NaN or infinite. The optimizer then skips the step.

    Args:
        what: What is not finite, as the subject of a sentence; empty for a loss.
    """


def mean_losses(closure: Closure, copies: int = 1) -> Tensor:
    """Calls a closure once, and returns the mean loss of each copy of its batch. Called for each forward pass.

    Args:
        closure: See ``Closure``.
        copies: Number of copies of the batch that the closure evaluates.

    Returns:
        Shape (copies,), float64 if the closure returns float64, else float32.
    """
    # torch.autocast caches weights that it casts to low precision. It does not notice that a weight has changed.
    torch.clear_autocast_cache()
    loss = closure()
    return (loss if loss.dtype == torch.float64 else loss.float()).reshape(copies, -1).mean(1)


@dataclass(frozen=True, slots=True)
class TailGradients:
    """The gradients of a forward whose graph begins at the last hidden state.

    Attributes:
        deltas: ∂loss/∂h_L of each call of the model, on this rank, of the shape of h_L, float32.
        weights: The gradient of the mean loss over all ranks by each weight that the last part uses.
        beyond: Whether a gradient is not zero before the watched columns, on any rank.
    """

    deltas: list[Tensor]
    weights: dict[Weight, Tensor]
    beyond: bool


class BasePoint:
    """Evaluates the model at the point θ at which a step begins. The optimizer makes one object for each step.

    Stages call it in ``Stage.prepare``. Each call makes one forward pass, which the report counts.

    Args:
        model: The model. A stage may watch its modules during an evaluation.
        closure: The closure of the step.
        collectives: The collectives of the run.
        step: The step.

    Attributes:
        losses: Mean loss of each forward pass of the step so far.
        backward_passes: Number of backward passes of the step so far.
        known_loss: L(θ) if it was measured and θ has not changed since, else None.
    """

    def __init__(self, model: nn.Module, closure: Closure, collectives: Collectives, step: Step) -> None:
        self.model = model
        self.closure = closure
        self.collectives = collectives
        self.step = step
        self.losses: list[float] = []
        self.backward_passes = 0
        self.known_loss: float | None = None

    def loss(self) -> float:
        """Evaluates the batch at θ by one forward pass. Called by stages in ``Stage.prepare``.

        Returns:
            The mean loss over the batches of all ranks.

        Raises:
            NotFinite: If the loss is NaN or infinite.
        """
        return self._recorded(float(self.collectives.all_mean(mean_losses(self.closure)).cpu().double()))

    def gradients(self, weights: Sequence[Weight]) -> dict[Weight, Tensor]:
        """Evaluates the batch at θ by one forward and one backward pass. Called by stages in ``Stage.prepare``.

        This package has no other backward pass through the model.

        Args:
            weights: The weights to differentiate by. Activations are kept for these weights only.

        Returns:
            The gradient of the mean loss over all ranks for each weight, of the shape and type of the weight.

        Raises:
            NotFinite: If the loss or a gradient is NaN or infinite.
            UserError: If the closure computes the loss without gradients.
        """
        with torch.enable_grad(), _requires_grad_only(self.model, weights):
            torch.clear_autocast_cache()
            loss = self.closure().float().mean()
            require(
                loss.requires_grad,
                "step: this method needs gradients, but the closure computes none; remove `torch.no_grad` from it",
            )
            found = torch.autograd.grad(loss, [weight.parameter for weight in weights], allow_unused=True)
        torch.clear_autocast_cache()
        self.backward_passes += 1
        mean = self.collectives.all_mean(loss.detach().view(1))
        gradients = {
            weight: self.collectives.all_mean(torch.zeros_like(weight.parameter) if own is None else own.contiguous())
            for weight, own in zip(weights, found, strict=True)
        }
        # A loss can be finite where its gradient is not, as at sqrt(0). Adam would keep the NaN for good.
        filled = [(weight.name, gradient) for weight, gradient in gradients.items() if gradient.numel()]
        largest = [vector_norm(gradient, math.inf) for _, gradient in filled]
        value, *sizes = torch.stack([mean[0], *(size.to(mean) for size in largest)]).tolist()  # the only wait
        self._recorded(value)
        for (name, _), size in zip(filled, sizes, strict=True):
            if not math.isfinite(size):
                raise NotFinite(f"the gradient of {name}")
        return gradients

    def tail_gradients(
        self, tail: AbstractContextManager[list[Tensor]], weights: Sequence[Weight], columns: int
    ) -> TailGradients:
        """Evaluates the batch at θ by one forward whose last part alone has a graph. Called in ``Stage.prepare``.

        Args:
            tail: A context that detaches the last hidden state of each call of the model, and enables gradients from
                there on. It yields these states.
            weights: The weights of the last part to differentiate by.
            columns: Number of columns (tokens) at the end of the rows that the caller has watched.

        Returns:
            The gradients by the states and the weights.

        Raises:
            NotFinite: If the loss or a gradient is NaN or infinite.
            UserError: If the loss has no gradient by the last hidden state.
        """
        with torch.no_grad(), _requires_grad_only(self.model, weights):
            torch.clear_autocast_cache()
            with tail as states:
                loss = self.closure().float().mean()
            require(
                loss.requires_grad,
                "model.optimizer: DirectFeedback needs a loss with a gradient by the last hidden state, which scores "
                "of answers (model.objective metric) do not have; use another objective, or a zeroth-order method",
            )
            found = torch.autograd.grad(loss, [*states, *(w.parameter for w in weights)], allow_unused=True)
        torch.clear_autocast_cache()
        deltas = [torch.zeros_like(s) if own is None else own for s, own in zip(states, found, strict=False)]
        of_weights = {
            weight: self.collectives.all_mean(own.contiguous())
            for weight, own in zip(weights, found[len(states) :], strict=True)
            if own is not None
        }
        mean = self.collectives.all_mean(loss.detach().view(1))
        before = [delta[:, :-columns] if delta.ndim > 2 else delta[:0] for delta in deltas]
        unseen = torch.stack([vector_norm(delta, dtype=torch.float32).to(loss) for delta in before]).sum()
        sizes = [vector_norm(own, dtype=torch.float32).to(loss) for own in (*deltas, *of_weights.values())]
        shared = self.collectives.all_mean(torch.stack([unseen, torch.stack(sizes).sum()]).detach())
        value, outside, size = torch.cat([mean, shared]).tolist()  # the only wait
        self._recorded(value)
        if not math.isfinite(size):
            raise NotFinite("the gradient of the last hidden state")
        return TailGradients([delta.float() for delta in deltas], of_weights, outside > 0.0)

    def _recorded(self, loss: float) -> float:
        self.losses.append(loss)
        self.known_loss = loss
        if not math.isfinite(loss):
            raise NotFinite
        return loss


@contextmanager
def _requires_grad_only(model: nn.Module, weights: Sequence[Weight]) -> Iterator[None]:
    """Disables the gradients of all other weights of the model for the time of the context."""
    wanted = {id(weight.parameter) for weight in weights}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in wanted]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
