"""Evaluates the loss or its gradient at the base point θ of a step, before any weight is perturbed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from zolit.errors import require
from zolit.optim.answers import Answers
from zolit.optim.arrivals import Arrivals, Read
from zolit.optim.blocks import Weight
from zolit.optim.collectives import Collectives
from zolit.optim.modules.recompute import recomputed_layers
from zolit.optim.modules.thin_gradients import ThinGradients
from zolit.optim.randomness import Step

Closure = Callable[[], Tensor]
"""Returns the mean loss of a batch, shape (), or the loss of each example, shape (batch,), at the current weights."""


class NotFinite(Exception):
    """Raised when a loss, a gradient or an estimate is NaN or infinite. The optimizer then skips the step.

    Args:
        what: What is not finite, as the subject of a sentence; empty for a loss.
        moved: Whether other weights have moved already in this step.
    """

    def __init__(self, what: str = "", moved: bool = False) -> None:
        super().__init__(what)
        self.moved = moved


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
class TailLoss:
    """A forward whose graph begins at the last hidden state.

    Attributes:
        losses: What the closure returned, float32.
        states: h_L of each call of the model.
    """

    losses: Tensor
    states: list[Tensor]


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
        lr: The learning rate of the step.
        answers: The correct answers of the batch of this rank; None if they are not known.

    Attributes:
        losses: Mean loss of each forward pass of the step so far.
        backward_passes: Number of backward passes of the step so far.
        recalled_loss: L(θ) of a batch that an update remembers, so that the step makes no forward; None if it does not.
        known_loss: L(θ) if it was measured and θ has not changed since, else None.
    """

    def __init__(
        self,
        model: nn.Module,
        closure: Closure,
        collectives: Collectives,
        step: Step,
        lr: float,
        answers: Answers | None = None,
    ) -> None:
        self.model = model
        self.closure = closure
        self.collectives = collectives
        self.step = step
        self.lr = lr
        self.answers = answers
        self.losses: list[float] = []
        self.recalled_loss: float | None = None
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

    def gradients(self, weights: Sequence[Weight], recompute: bool = False) -> dict[Weight, Tensor]:
        """Evaluates the batch at θ by one forward and one backward pass. Called by stages in ``Stage.prepare``.

        Args:
            weights: The weights to differentiate by. Activations are kept for these weights only.
            recompute: Whether the backward pass computes layers again, so that their activations are not kept.

        Returns:
            The gradient of the mean loss over all ranks for each weight, of the shape and type of the weight.

        Raises:
            NotFinite: If the loss or a gradient is NaN or infinite.
            UserError: If the closure computes the loss without gradients.
        """
        with self._differentiated(weights, recompute):
            loss = self._loss_with_gradient()
            found = torch.autograd.grad(loss, [weight.parameter for weight in weights], allow_unused=True)
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

    def pass_gradients(
        self, weights: Sequence[Weight], receive: Callable[[Weight, Read], None], recompute: bool = False
    ) -> None:
        """Evaluates the batch as ``gradients`` does, and passes each gradient on as it arrives. None is kept.

        Called by updates in ``Stage.prepare``.

        Args:
            weights: See ``gradients``.
            receive: Called once for each weight, with a function that reads pieces of its gradient; see ``Arrivals``.
                It may move the weight. It is not called for a gradient that is not finite.
            recompute: See ``gradients``.

        Raises:
            NotFinite: If the loss is NaN or infinite; no gradient is computed then. Or if a gradient is: all others
                have been passed on then.
            UserError: If the closure computes the loss without gradients, or a gradient arrives in parts.
        """
        # Ranks exchange whole gradients.
        thin = ThinGradients(self.model, [w.parameter for w in weights] if self.collectives.size == 1 else [])
        with self._differentiated(weights, recompute), thin.collected():
            loss = self._loss_with_gradient()
            self._recorded(float(self.collectives.all_mean(loss.detach().view(1)).cpu().double()))
            arrivals = Arrivals(weights, self.collectives, receive, thin)
            with arrivals.passed_on(loss):
                loss.backward()  # type: ignore[no-untyped-call]  # untyped there
        self.backward_passes += 1
        if bad := arrivals.not_finite:
            raise NotFinite(f"the gradient of {bad[0]}", moved=len(bad) < len(weights))

    def tail_loss(self, tail: AbstractContextManager[list[Tensor]], weights: Sequence[Weight]) -> TailLoss:
        """Evaluates the batch at θ by one forward whose last part alone has a graph. Called in ``Stage.prepare``.

        Args:
            tail: A context that detaches the last hidden state of each call of the model, and enables gradients from
                there on. It yields these states.
            weights: The weights of the last part to differentiate by.
        """
        with torch.no_grad(), _requires_grad_only(self.model, weights):
            torch.clear_autocast_cache()
            with tail as states:
                losses = self.closure().float()
        torch.clear_autocast_cache()
        return TailLoss(losses, states)

    def tail_gradients(
        self, made: TailLoss, weights: Sequence[Weight], columns: int, probed: Callable[[TailLoss], list[Tensor]]
    ) -> TailGradients:
        """Differentiates the mean loss by the last hidden state. Called after ``tail_loss``, with the same weights.

        Args:
            made: What ``tail_loss`` returned.
            weights: See ``tail_loss``.
            columns: Number of columns (tokens) at the end of the rows that the caller has watched.
            probed: Estimates the gradients by the states, if the losses have none.

        Returns:
            The gradients by the states and the weights.

        Raises:
            NotFinite: If the loss or a gradient is NaN or infinite.
            UserError: If the losses have no gradient, and weights are to be differentiated by.
        """
        states = made.states
        with torch.enable_grad():
            loss = made.losses.mean()
        if loss.requires_grad:
            with _requires_grad_only(self.model, weights):  # pieces of texts are computed again
                found = torch.autograd.grad(loss, [*states, *(w.parameter for w in weights)], allow_unused=True)
        else:
            require(
                not weights,
                "model.optimizer: DirectFeedback trains final norm and head by their exact gradients, which this loss "
                "(model.objective metric) does not have; set its option head to false",
            )
            found = tuple(probed(made))
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

    @contextmanager
    def _differentiated(self, weights: Sequence[Weight], recompute: bool) -> Iterator[None]:
        """Enables the gradients of these weights alone. A forward and its backward pass run within the context."""
        with torch.enable_grad(), _requires_grad_only(self.model, weights):
            torch.clear_autocast_cache()
            with recomputed_layers(self.model) if recompute else nullcontext():
                yield
        torch.clear_autocast_cache()

    def _loss_with_gradient(self) -> Tensor:
        loss = self.closure().float().mean()
        require(
            loss.requires_grad,
            "step: this method needs gradients, but the closure computes none; remove `torch.no_grad` from it",
        )
        return loss

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
