"""The methods of the study: how each is made, and the four rates of which the best is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stages import DampedMeZO, SignMeZO, guided_by
from torch import nn

import zolit
from zolit.optim import ZerothOrder

FACTORS = (0.5, 1.0, 2.0, 4.0)
"""The four rates of a method with ``lr: auto``, as multiples of what ``auto`` chooses."""


@dataclass(frozen=True)
class Entry:
    """A method with its options.

    Attributes:
        make: Makes the optimizer from a model, a rate and a seed.
        rates: The four rates; empty for multiples of ``lr: auto``.
        lora: Whether adapters are trained instead of all weights.
        batch: Examples of a step.
        period: Number of steps after which their costs repeat.
    """

    make: Callable[..., ZerothOrder]
    rates: tuple[float, ...] = ()
    lora: bool = False
    batch: int = 16
    period: int = 1


def entry(method: type[ZerothOrder], *rates: float, lora: bool = False, batch: int = 16, **options: Any) -> Entry:
    """Returns the entry of a method of zolit."""

    def make(model: nn.Module, lr: Any, seed: int) -> ZerothOrder:
        return method(model, lr=lr, seed=seed, **options)

    return Entry(make, rates, lora, batch, 10 if method is zolit.DirectFeedback else 1)


def probe(model: nn.Module, lr: Any, seed: int) -> ZerothOrder:
    """Makes a linear probe. What is tuned is its penalty."""
    return zolit.LinearProbe(model, l2=lr, seed=seed)


METHODS: dict[str, Entry] = {
    "MeZO": entry(zolit.MeZO),
    "FirstOrder, AdamW": entry(zolit.FirstOrder, 1e-5, 3e-5, 1e-4, 3e-4),
    "FirstOrder, frugal": entry(
        zolit.FirstOrder, 3e-5, 1e-4, 3e-4, 1e-3, rule="factored", keep_gradients=False, recompute=True
    ),
    "LinearProbe": Entry(probe, (0.03, 0.3, 3.0, 30.0)),
    "DirectFeedback": entry(zolit.DirectFeedback, 1e-4, 2e-4, 4e-4, 8e-4),
    "CurvZO": entry(zolit.CurvZO),
    "PerExample": entry(zolit.PerExample),
    "DirectFeedback, identity": entry(zolit.DirectFeedback, 1e-4, 2e-4, 4e-4, 8e-4, calibration=0),
    "DirectFeedback, refresh 0": entry(zolit.DirectFeedback, 1e-4, 2e-4, 4e-4, 8e-4, refresh=0),
    "DirectFeedback, factored": entry(zolit.DirectFeedback, 3e-5, 1e-4, 3e-4, 1e-3, rule="factored"),
    "DirectFeedback, factored, refresh 0": entry(
        zolit.DirectFeedback, 3e-5, 1e-4, 3e-4, 1e-3, rule="factored", refresh=0
    ),
    "FirstOrder, last 4 layers": entry(zolit.FirstOrder, 3e-5, 1e-4, 3e-4, 1e-3, layers=4),
    "FirstOrder, last 4 layers, frugal": entry(
        zolit.FirstOrder, 1e-4, 3e-4, 1e-3, 3e-3, rule="factored", keep_gradients=False, layers=4
    ),
    "FirstOrder, LoRA": entry(zolit.FirstOrder, 1e-4, 3e-4, 1e-3, 3e-3, lora=True),
    "FirstOrder, LoRA, frugal": entry(
        zolit.FirstOrder, 1e-4, 3e-4, 1e-3, 3e-3, lora=True, keep_gradients=False, recompute=True
    ),
    "FirstOrder, SGD": entry(
        zolit.FirstOrder, 1e-3, 3e-3, 1e-2, 3e-2, rule="sgd", keep_gradients=False, recompute=True
    ),
    "FZOO": entry(zolit.FZOO, eps=1e-3),
    "LOZO": entry(zolit.LOZO),
    "SparseMeZO": entry(zolit.SparseMeZO),
    "AGZO": entry(zolit.AGZO, eps=1e-2),
    "DominantLayer": entry(zolit.DominantLayer),
    "SubZero": entry(zolit.SubZero),
    "BSZO": entry(zolit.BSZO, eps=1e-3),
    "HiZOO": entry(zolit.HiZOO),
    "MeZO-GV": entry(zolit.MeZOGV),
    "MeZO-Greedy": entry(zolit.MeZOGreedy),
    "DiZO": entry(zolit.DiZO),
    "SensZOQ": entry(zolit.SensZOQ),
    "ZO-Act": entry(zolit.ZOAct, 1e-4, 1e-3, 1e-2, 1e-1),
    "Hi-ZFO": entry(zolit.HiZFO, 1e-5, 3e-5, 1e-4, 3e-4, zo_share=0.3),
    "MeZO, LoRA": entry(zolit.MeZO, lora=True, eps=1e-2),
}
GUIDANCE: dict[str, Entry] = {
    "uniform sampling": entry(zolit.CurvZO, sampling="uniform"),
    "CurvZO, literal scores": entry(zolit.CurvZO, score="literal", exploration=0.0),
    "CurvZO, published code": entry(zolit.CurvZO, variant="code"),
    "CurvZO, divided by size": entry(zolit.CurvZO, divide_by_size=True),
    "CurvZO, unbiased scores": entry(zolit.CurvZO, score="unbiased"),
    "CurvZO, without 1/pi": entry(zolit.CurvZO, horvitz_thompson=False),
    "true gradient, sqrt(G)": entry(guided_by("guided")),
    "true gradient, sqrt(d/G)": entry(guided_by("least variance")),
}
STEPS: dict[str, Entry] = {
    **{f"MeZO, q = {q}": entry(zolit.MeZO, directions=q) for q in (4, 16, 40)},
    **{f"MeZO, batch {b}": entry(zolit.MeZO, batch=b) for b in (4, 64, 128)},
    "MeZO, q = 16, signs": entry(SignMeZO, directions=16),
    "MeZO, q = 16, signs, damped": entry(DampedMeZO, directions=16),
}
SETS = {"methods": METHODS, "guidance": GUIDANCE, "steps": STEPS}
