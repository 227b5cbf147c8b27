"""Estimates the gradient at the last hidden state by probes of what follows it, for losses without a gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zolit.errors import require
from zolit.optim.base_point import BasePoint, TailLoss
from zolit.optim.feedback.stream import ResidualStream
from zolit.optim.modules.calls import ModelCalls
from zolit.optim.randomness import Generators, key_of

_PURPOSE = key_of("probes of the head")
_RADIUS = 0.5


class HeadProbes:
    """Moves the last hidden state h of each row of a batch at random, and computes norm, head and loss again.

    With v standard normal,

        δ = E[(L(h + σv) - L(h - σv)) / 2σ · v].

    This is the gradient of E L(h + σv), the loss smoothed by a normal distribution (Nesterov and Spokoiny, Foundations
    of Computational Mathematics 2017). It exists for losses such as 1 - accuracy, too. The expectation is a mean over
    pairs of moves. The loss of a row depends on no other row, so one pair probes all rows. No layer runs in a probe. σ
    is .5 of the median over coordinates of their root mean square. Ranks draw the same v for rows of the same index.

    Args:
        stream: The residual stream of the model.
        pairs: Number of pairs of moves.
    """

    def __init__(self, stream: ResidualStream, pairs: int) -> None:
        self._stream = stream
        self._pairs = pairs
        self._generators = Generators()

    def deltas(self, base: BasePoint, made: TailLoss) -> list[Tensor]:
        """Returns an estimate of ∂(mean loss)/∂h for each call of the model, of the shape of its h, float32.

        It is 0 where h does not reach the output of the model, as in columns without logits.

        Args:
            base: The base point of the step.
            made: The forward without moves.

        Raises:
            UserError: If the losses are not those of the rows of the model's calls, or depend on more than h.
        """
        states, losses = [state.detach() for state in made.states], made.losses.detach()
        rows = [len(state) for state in states]
        require(
            losses.shape == (sum(rows),),
            "model.optimizer: without a gradient, DirectFeedback needs the loss of each row of the model's input, "
            f"shape ({sum(rows)},), not {tuple(losses.shape)}; it cannot train on answers that are generated",
        )
        reached = self._reached(base, made)
        sizes = [_RADIUS * _typical(state, used) for state, used in zip(states, reached, strict=True)]
        deltas = [torch.zeros(state.shape, dtype=torch.float32, device=state.device) for state in states]
        for pair in range(self._pairs):
            moves = list(self._moves(base, pair, states, reached))
            steps = [size * move for size, move in zip(sizes, moves, strict=True)]
            ahead = self._losses(base, [_moved(state, step) for state, step in zip(states, steps, strict=True)])
            behind = self._losses(base, [_moved(state, -step) for state, step in zip(states, steps, strict=True)])
            changes = torch.split(ahead - behind, rows)
            for delta, size, move, change in zip(deltas, sizes, moves, changes, strict=True):
                slope = change / (2.0 * size * self._pairs * len(losses))
                delta.add_(slope.view(-1, *[1] * (delta.ndim - 1)) * move)
        return deltas

    def _losses(self, base: BasePoint, states: Sequence[Tensor]) -> Tensor:
        with torch.no_grad(), self._stream.replayed(states):
            return base.closure().detach().float()

    def _reached(self, base: BasePoint, made: TailLoss) -> list[Tensor]:
        """Returns which tokens of h reach the output of the model, shape of h without d, bool.

        Raises:
            UserError: If the same h gives other losses, because layers matter in another way than by h.
        """
        leaves = [state.detach().requires_grad_() for state in made.states]
        outputs: list[Any] = []
        with ModelCalls(base.model, on_end=outputs.append).followed():
            again = self._losses(base, leaves)
        require(
            torch.allclose(again, made.losses, rtol=1e-3, atol=1e-3, equal_nan=True),
            "model.optimizer: DirectFeedback cannot probe the head of this model, whose output depends on more than "
            "the last hidden state; use another objective, or another method",
        )
        with torch.enable_grad():
            total = torch.stack([tensor.float().sum() for output in outputs for tensor in _tensors(output)]).sum()
            return [gradient.any(-1) for gradient in torch.autograd.grad(total, leaves)]

    def _moves(
        self, base: BasePoint, pair: int, states: Sequence[Tensor], reached: Sequence[Tensor]
    ) -> Iterator[Tensor]:
        """Yields v for each call of the model, float32; 0 at tokens that do not reach the output."""
        for call, (state, used) in enumerate(zip(states, reached, strict=True)):
            generator = self._generators.seeded(base.step.key(_PURPOSE, pair, call), state.device)
            move = torch.randn(state.shape, generator=generator, device=state.device, dtype=torch.float32)
            yield move * used[..., None]


def _moved(state: Tensor, step: Tensor) -> Tensor:
    return (state.float() + step).to(state.dtype)


def _typical(state: Tensor, used: Tensor) -> Tensor:
    """Returns the median over coordinates of their root mean square at the used tokens; shape (), float32."""
    weights = used.reshape(-1, 1)
    squares = state.float().flatten(0, -2).square() * weights
    return squares.sum(0).div(weights.sum().clamp(min=1)).sqrt().median()


def _tensors(output: Any) -> list[Tensor]:
    """Returns the tensors with a gradient in the output of a model."""
    values = output.values() if isinstance(output, Mapping) else [output]
    return [value for value in values if isinstance(value, Tensor) and value.requires_grad]
