"""Invalid options: each raises a UserError of one sentence that names the option."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.tiny import layered
from zolit import CurvZO, MeZO, UserError, ZerothOrder
from zolit.optim.perturbation.gaussian_pool import GaussianPool
from zolit.optim.perturbation.rademacher import Rademacher

BOTH = [
    ("lr", {"lr": -1e-3}),
    ("lr", {"lr": math.nan}),
    ("lr", {"lr": math.inf}),
    ("eps", {"eps": 0.0}),
    ("eps", {"eps": -1e-3}),
    ("eps", {"eps": math.nan}),
    ("directions", {"directions": 0}),
    ("max_skipped", {"max_skipped": 0}),
    ("momentum", {"momentum": -0.1}),
    ("momentum", {"momentum": 1.0}),
    ("weight_decay", {"weight_decay": -0.1}),
    ("update_rounding", {"update_rounding": "up"}),
]
CURVZO = [
    ("budget", {"budget": 0.0}),
    ("budget", {"budget": 1.5}),
    ("budget", {"budget": math.nan}),
    ("budget", {"budget": "adaptve"}),
    ("budget_min", {"budget_min": 0.0}),
    ("budget_min", {"budget_min": 0.9}),
    ("budget_max", {"budget_max": 1.1}),
    ("alpha", {"alpha": -0.1}),
    ("alpha", {"alpha": 1.1}),
    ("smoothing", {"smoothing": 0.0}),
    ("smoothing", {"smoothing": 1.1}),
    ("exploration", {"exploration": 0.1}),
    ("exploration", {"exploration": -0.1}),
    ("score", {"score": "sample"}),
    ("score", {"score": "unbiased", "perturbation": Rademacher()}),
    ("sampling", {"sampling": "unifrom"}),
    ("blocks", {"blocks": "decoder"}),
    ("blocks", {"blocks": "(layers"}),
    ("blocks", {"blocks": "parameter", "sampling": "uniform"}),
    ("blocks", {"blocks": "parameter", "divide_by_size": True}),
    ("smoothing", {"blocks": "parameter", "smoothing": 0.0}),
    ("score", {"blocks": "parameter", "score": "sample"}),
    ("exploration", {"blocks": "parameter", "exploration": 0.1}),
]


@pytest.mark.parametrize(
    ("method", "option", "options"),
    [(MeZO, *case) for case in BOTH] + [(CurvZO, *case) for case in BOTH + CURVZO],
    ids=lambda part: getattr(part, "__name__", None) or "-".join(part) if not isinstance(part, str) else part,
)
def test_out_of_range(method: Callable[..., ZerothOrder], option: str, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"\b{option}\b") as caught:
        method(layered(), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", [MeZO, CurvZO])
def test_frozen_model(method: Callable[..., ZerothOrder]) -> None:
    with pytest.raises(UserError, match="trainable"):
        method(layered().requires_grad_(False))


@pytest.mark.parametrize("method", [MeZO, CurvZO])
def test_zero_learning_rate_is_allowed(method: Callable[..., ZerothOrder]) -> None:
    """Schedulers with a warm-up start at 0."""
    method(layered(), lr=0.0)


def test_pool_too_small() -> None:
    with pytest.raises(UserError, match="chunks"):
        GaussianPool(1)


@pytest.mark.parametrize("options", [{}, {"blocks": "layer"}, {"blocks": "parameter"}, {"budget": 0.1}])
def test_a_model_of_one_parameter(options: dict[str, Any]) -> None:
    """The smallest possible model has one block, which is sampled with every budget."""
    model = nn.Linear(1, 1, bias=False)
    optimizer = CurvZO(model, lr=1e-2, eps=1e-2, **options)

    def closure() -> torch.Tensor:
        losses: torch.Tensor = (model(torch.ones(2, 1)) - 3.0).square()
        return losses

    for _ in range(5):
        loss = optimizer.step(closure)
    assert math.isfinite(loss)
