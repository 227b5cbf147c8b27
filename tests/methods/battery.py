"""Every registered method, and the forms of it that go other ways: what ``test_contract.py`` puts to the test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from zolit import CurvZO, MeZO, PerExample, ZerothOrder
from zolit.selection import BlockScores, Curvature, FixedBudget

Make = Callable[..., ZerothOrder]

METHODS: dict[str, tuple[Callable[..., ZerothOrder], dict[str, Any]]] = {
    "mezo": (MeZO, {}),
    "mezo, 2 directions": (MeZO, {"directions": 2}),
    "mezo, momentum and decay": (MeZO, {"momentum": 0.5, "weight_decay": 0.01}),
    "curvzo, tensors": (CurvZO, {}),
    "curvzo, layers": (CurvZO, {"blocks": "layer"}),
    "curvzo, pattern": (CurvZO, {"blocks": r"^[a-z]+"}),
    "curvzo, parameters": (CurvZO, {"blocks": "parameter"}),
    "curvzo, parameters, momentum": (CurvZO, {"blocks": "parameter", "momentum": 0.5}),
    "curvzo, uniform": (CurvZO, {"sampling": "uniform"}),
    "curvzo, fixed budget": (CurvZO, {"budget": 0.4}),
    "curvzo, plain weights": (CurvZO, {"horvitz_thompson": False}),
    "curvzo, literal": (CurvZO, {"score": "literal", "exploration": 0.0}),
    "curvzo, corrected": (CurvZO, {"score": "corrected"}),
    "curvzo, unbiased": (CurvZO, {"score": "unbiased"}),
    "curvzo, by size": (CurvZO, {"divide_by_size": True, "directions": 2}),
    "per example": (PerExample, {}),
    "per example, plain": (PerExample, {"guided": False}),
    "per example, rank 2, momentum": (PerExample, {"guided": False, "rank": 2, "momentum": 0.5}),
    "per example, by curvature": (
        PerExample,
        {
            "guided": False,
            "selection": lambda: Curvature(FixedBudget(0.5), BlockScores(rule="unbiased"), exploration=0.1),
        },
    ),
}

OFF_SPAN: set[str] = set()
"""Those that move weights otherwise than along one step's directions alone: by backpropagation, or by a memory."""

RATES: dict[str, float] = {}
"""Learning rates that suit the layered model, where 1e-3 does not."""


def made(name: str, model: nn.Module, **more: Any) -> ZerothOrder:
    """Builds a method on a model, some options given by the test."""
    method, options = METHODS[name]
    fresh = {option: value() if callable(value) else value for option, value in options.items()}
    return method(model, **{"lr": RATES.get(name, 1e-3), **fresh, **more})
