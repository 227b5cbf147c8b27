"""The forms of methods that tests run, one line a form. ``test_contract.py`` and others test all of them."""

from __future__ import annotations

from typing import Any

from torch import nn

import zolit
from tests.helpers.tiny import Layered, ResidualStream, layered
from zolit import ZerothOrder
from zolit.optim import BlockScores, CurvatureSampling, FixedBudget

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "mezo": ("MeZO", {}),
    "mezo, 2 directions": ("MeZO", {"directions": 2}),
    "mezo, momentum and decay": ("MeZO", {"momentum": 0.5, "weight_decay": 0.01}),
    "curvzo, tensors": ("CurvZO", {}),
    "curvzo, layers": ("CurvZO", {"blocks": "layer"}),
    "curvzo, pattern": ("CurvZO", {"blocks": r"^[a-z]+"}),
    "curvzo, parameters": ("CurvZO", {"blocks": "parameter"}),
    "curvzo, parameters, momentum": ("CurvZO", {"blocks": "parameter", "momentum": 0.5}),
    "curvzo, uniform": ("CurvZO", {"sampling": "uniform"}),
    "curvzo, fixed budget": ("CurvZO", {"budget": 0.4}),
    "curvzo, plain weights": ("CurvZO", {"horvitz_thompson": False}),
    "curvzo, literal": ("CurvZO", {"score": "literal", "exploration": 0.0}),
    "curvzo, corrected": ("CurvZO", {"score": "corrected"}),
    "curvzo, unbiased": ("CurvZO", {"score": "unbiased"}),
    "curvzo, by size": ("CurvZO", {"divide_by_size": True, "directions": 2}),
    "curvzo, published": ("CurvZO", {"variant": "code"}),
    "per example": ("PerExample", {}),
    "per example, plain": ("PerExample", {"guided": False}),
    "per example, rank 2, momentum": ("PerExample", {"guided": False, "rank": 2, "momentum": 0.5}),
    "per example, by curvature": (
        "PerExample",
        {
            "guided": False,
            "selection": lambda: CurvatureSampling(FixedBudget(0.5), BlockScores(rule="unbiased"), exploration=0.1),
        },
    ),
    "bszo": ("BSZO", {}),
    "bszo, b": ("BSZO", {"adaptive": True, "prior": 5.0, "noise": 1.0}),
    "bszo, code": ("BSZO", {"variant": "code", "directions": 3, "queries": 5, "prior": 5.0, "noise": 1.0}),
    "mezo-gv": ("MeZOGV", {}),
    "mezo-greedy": ("MeZOGreedy", {}),
    "agzo": ("AGZO", {}),
    "agzo, rank 2, two-sided": ("AGZO", {"rank": 2, "two_sided": True}),
    "zo-act": ("ZOAct", {}),
    "dominant layer": ("DominantLayer", {}),
    "dominant layer, by curvature": (
        "DominantLayer",
        {"layer": 1, "within": lambda: CurvatureSampling(FixedBudget(0.5), BlockScores(), exploration=0.1)},
    ),
    "hi-zfo": ("HiZFO", {}),
    "hi-zfo, profiled again": ("HiZFO", {"budget": 0.6, "interval": 2}),
    "dizo": ("DiZO", {"pattern": "layers"}),
    "dizo, often": ("DiZO", {"pattern": "layers", "every": 2, "inner_steps": 2}),
    "sparse-mezo": ("SparseMeZO", {}),
    "sparse-mezo, refreshed": ("SparseMeZO", {"density": 0.6, "refresh": 2}),
    "subzero": ("SubZero", {}),
    "subzero, refreshed": ("SubZero", {"rank": 2, "refresh": 2}),
    "lozo": ("LOZO", {}),
    "lozo, refreshed": ("LOZO", {"refresh": 2}),
    "hizoo": ("HiZOO", {}),
    "hizoo, fast": ("HiZOO", {"smoothing": 1e-2}),
    "fzoo": ("FZOO", {}),
    "fzoo, code": ("FZOO", {"variant": "code"}),
    "senszoq": ("SensZOQ", {}),
    "senszoq, dense": ("SensZOQ", {"density": 0.3}),
    "first order": ("FirstOrder", {}),
    "first order, recomputed": ("FirstOrder", {"recompute": True}),
    "first order, fused": ("FirstOrder", {"keep_gradients": False}),
    "first order, sgd": ("FirstOrder", {"rule": "sgd", "keep_gradients": False, "recompute": True}),
    "first order, factored": ("FirstOrder", {"rule": "factored", "keep_gradients": False, "recompute": True}),
    "first order, last layer": ("FirstOrder", {"layers": 1, "keep_gradients": False}),
    "direct feedback": ("DirectFeedback", {}),
    "direct feedback, identity": ("DirectFeedback", {"calibration": 0, "layers": 2}),
    "direct feedback, refreshed": ("DirectFeedback", {"calibration": 4, "refresh": 1}),
    "direct feedback, with head": ("DirectFeedback", {"calibration": 4, "head": True}),
}

FIRST_ORDER: set[str] = {name for name, (method, _) in METHODS.items() if method == "FirstOrder"}
"""Forms without random numbers, except for the rounding of 16 bits."""

FEEDBACK = {name for name, (method, _) in METHODS.items() if method == "DirectFeedback"}
"""Forms that need a model whose layers add to one hidden state."""

OFF_SPAN: set[str] = {*FIRST_ORDER, *FEEDBACK, "hi-zfo", "hi-zfo, profiled again", "zo-act", "dizo, often"}
"""Forms that also move weights outside of the span of one step's directions: by backpropagation or by averages."""

ORDERED = {"hi-zfo", "hi-zfo, profiled again"}
"""Forms that take the order of a model's parameters as that of its backward pass."""

UNEVEN = {"hi-zfo, profiled again", "dizo, often", "fzoo, code"}
"""Forms whose number of forwards differs between steps."""

RATES: dict[str, float] = {
    "agzo": 3e-3,
    "bszo": 1.0,
    **dict.fromkeys(FEEDBACK, 3e-3),
    "dominant layer": 5e-3,
    "dominant layer, by curvature": 3e-3,
    **dict.fromkeys(FIRST_ORDER, 1e-2),
    "fzoo": 1e-6,
    "fzoo, code": 1e-2,
    "hizoo, fast": 3e-3,
    "senszoq": 3e-2,
    "sparse-mezo, refreshed": 2e-3,
    "zo-act": 1e-2,
}
"""Learning rates for the layered model where 1e-3 is not suitable."""


def model_for(name: str, *args: Any, **options: Any) -> Layered:
    """Returns the layered model of which a form can train the weights; see ``layered``."""
    return layered(*args, **options, kind=ResidualStream if name in FEEDBACK else Layered)


def made(name: str, model: nn.Module, **more: Any) -> ZerothOrder:
    """Builds a form of a method on a model, with further options of the test."""
    method, options = METHODS[name]
    fresh = {option: value() if callable(value) else value for option, value in options.items()}
    optimizer: ZerothOrder = getattr(zolit, method)(model, **{"lr": RATES.get(name, 1e-3), **fresh, **more})
    return optimizer
