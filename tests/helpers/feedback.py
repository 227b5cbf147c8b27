"""The gradients of direct feedback and those of autograd, for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zolit import DirectFeedback
from zolit.optim.blocks import Weight
from zolit.optim.randomness import Step
from zolit.optim.updates.adam import Adam

Gradients = dict[str, Tensor]


class Recorded(Adam):
    """An Adam that records gradients, and moves nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients: Gradients = {}

    def move(self, weight: Weight, gradient: Tensor, start: int, stop: int, lr: float, step: Step) -> None:
        whole = self.gradients.setdefault(weight.name, torch.zeros(weight.parameter.numel()))
        whole[start:stop] = gradient


def found(model: nn.Module, closure: Callable[[], Tensor], steps: int = 1, **options: Any) -> tuple[Gradients, Any]:
    """Returns the gradients of direct feedback in the last of some steps, and the optimizer."""
    optimizer = DirectFeedback(model, **options)
    recorded = optimizer.update._rule = Recorded()
    for _ in range(steps):
        recorded.gradients = {}
        optimizer.step(closure)
    return recorded.gradients, optimizer


def true(model: nn.Module, closure: Callable[[], Tensor]) -> Gradients:
    """Returns autograd's gradients of all weights."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(closure().float().mean(), list(named.values()), allow_unused=True)
    return {n: g.flatten().float() for n, g in zip(named, gradients, strict=True) if g is not None}


def cosine(left: Tensor, right: Tensor) -> float:
    return float(functional.cosine_similarity(left, right, 0))


def close(left: Tensor, right: Tensor, tolerance: float = 1e-4) -> bool:
    return float((left - right).norm()) < tolerance * float(right.norm())


TEXTS = torch.arange(60).view(5, 12) * 37 % 900 + 5


def word_loss(model: nn.Module) -> Callable[[], Tensor]:
    """The loss looks at the last token of each row."""
    return lambda: functional.cross_entropy(
        model(input_ids=TEXTS, use_cache=False).logits[:, -1].float(), TEXTS[:, 0], reduction="none"
    )


def text_loss(model: nn.Module, first: int = 1) -> Callable[[], Tensor]:
    """The loss looks at all tokens from ``first`` on."""

    def closure() -> Tensor:
        logits = model(input_ids=TEXTS, use_cache=False).logits[:, first - 1 : -1].float()
        return functional.cross_entropy(logits.flatten(0, 1), TEXTS[:, first:].flatten())

    return closure
