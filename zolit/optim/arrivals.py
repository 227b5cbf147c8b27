"""Passes on each gradient of a backward pass as it arrives, so that no other gradient is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from zolit.errors import require
from zolit.optim.blocks import Weight
from zolit.optim.buffers import pieces
from zolit.optim.collectives import Collectives
from zolit.optim.modules.thin_gradients import ThinGradient, ThinGradients

Read = Callable[[int, int], Tensor]
"""Returns a piece of a gradient, from its first element to the one after its last, shape (stop - start,), float32."""

_CHUNK = 1 << 19


class Arrivals:
    """Passes on each gradient of a backward pass, once, as soon as it is complete.

    A hook of torch receives the gradient of a weight when all uses of the weight have added to it
    (``register_post_accumulate_grad_hook``). No later part of this backward pass needs the weight, so that the receiver
    may change it (LOMO, arXiv 2306.09782). Weights that the loss does not depend on get a gradient of zeros at the end.

    All ranks must exchange gradients in the same order, but a rank may use other layers than the others. With several
    ranks, gradients are therefore exchanged from the last weight to the first. One that arrives early waits for its
    turn. A rank knows before the pass which weights get no gradient, and nothing waits for these.

    Args:
        weights: The weights.
        collectives: The collectives of the run.
        receive: Called with a weight and a function that reads its mean gradient over all ranks. It is called in the
            thread of the backward pass, without gradients, and only for gradients that are finite.
        thin: The thin gradients that the pass collects. They are complete at its end.

    Attributes:
        not_finite: Names of the weights with a gradient that is not finite.
    """

    def __init__(
        self,
        weights: Sequence[Weight],
        collectives: Collectives,
        receive: Callable[[Weight, Read], None],
        thin: ThinGradients,
    ) -> None:
        self._weights = weights
        self._collectives = collectives
        self._receive = receive
        self._thin = thin
        self._queue = list(weights) if collectives.size > 1 else []
        self._absent: set[int] = set()
        self._held: dict[Weight, Tensor] = {}
        self._done: set[Weight] = set()
        self.not_finite: list[str] = []

    @contextmanager
    def passed_on(self, loss: Tensor) -> Iterator[None]:
        """Passes on the gradients of one backward pass of the loss, which runs within the context. Used once.

        Args:
            loss: Shape ().

        Raises:
            UserError: If the gradient of a weight arrives in several parts, as with reentrant checkpoints.
        """
        if self._queue:
            self._absent = {id(weight.parameter) for weight in self._weights} - _used(loss)
        with ExitStack() as hooks:
            for weight in self._weights:
                weight.parameter.grad = None
                arrive = self._arrival_of(weight)
                hook = weight.parameter.register_post_accumulate_grad_hook(arrive)  # type: ignore[no-untyped-call]
                hooks.callback(hook.remove)
            yield
        for weight in reversed(self._weights):
            if weight not in self._done:
                self._pass_on(weight, self._held.pop(weight, None))

    def _arrival_of(self, weight: Weight) -> Callable[[Tensor], None]:
        @torch.no_grad()
        def arrive(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            require(
                weight not in self._done and weight not in self._held,
                f"keep_gradients: the gradient of {weight.name} arrives in parts, and the weight has moved already; "
                "set `keep_gradients` to true",
            )
            if self._queue or id(parameter) in self._thin.found:
                self._held[weight] = gradient
                self._pass_on_in_turn()
            else:
                self._pass_on(weight, gradient)

        return arrive

    def _pass_on_in_turn(self) -> None:
        while self._queue and (self._queue[-1] in self._held or id(self._queue[-1].parameter) in self._absent):
            weight = self._queue.pop()
            self._pass_on(weight, self._held.pop(weight, None))

    @torch.no_grad()
    def _pass_on(self, weight: Weight, gradient: Tensor | None) -> None:
        """Passes on a gradient; None is a gradient of zeros."""
        self._done.add(weight)
        parameter = weight.parameter
        thin = self._thin.found.pop(id(parameter), None)
        if thin is None:
            own = torch.zeros_like(parameter) if gradient is None else gradient.contiguous()
            flat = self._collectives.all_mean(own).flatten()
            ends = [*torch.aminmax(flat)]
            read = reader(flat)
        else:
            read = _thin_reader(thin, parameter.shape[1], None if gradient is None else gradient.flatten())
            ends = [end for piece in pieces(parameter.shape, _CHUNK) for end in torch.aminmax(read(*piece))]
        if torch.stack(ends).isfinite().all():  # the host waits: a weight that has moved cannot be moved back
            self._receive(weight, read)
        else:
            self.not_finite.append(weight.name)


def reader(flat: Tensor) -> Read:
    """Returns a function that reads pieces of a gradient, shape (numel,)."""
    return lambda start, stop: flat[start:stop].float()


def _thin_reader(thin: ThinGradient, width: int, rest: Tensor | None) -> Read:
    def read(start: int, stop: int) -> Tensor:
        first = start // width
        piece = thin.rows(first, -(-stop // width)).flatten()[start - first * width : stop - first * width]
        return piece if rest is None else piece.add_(rest[start:stop])

    return read


def _used(loss: Tensor) -> set[int]:
    """Returns the ids of the parameters to which a backward pass gives a gradient."""
    waiting, seen, found = [loss.grad_fn], set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::AccumulateGrad":
            found.add(id(node.variable))  # type: ignore[attr-defined]  # of this kind of node
        waiting.extend(following for following, _ in node.next_functions)
    return found
