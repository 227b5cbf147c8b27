"""Stages that zolit does not have: sampling by the true gradient, and damping by curvature along a direction."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from zolit.optim import SPSA, BlockSampling, Estimate, Estimator, FixedBudget, Rademacher, ZerothOrder
from zolit.optim.estimators.base import Evaluate

ENERGIES = Path(__file__).parent / "energies.csv"


class TrueEnergy(BlockSampling):
    """Samples blocks by the energy G_b of the true gradient before training, which no forward-only method knows.

    Args:
        rule: ``guided`` samples with √G_b. ``least variance`` samples with √(d_b / G_b), d_b being the size of the
            block: the least variance of an unbiased estimate.
        share: B / n, the expected share of blocks.
    """

    def __init__(self, rule: Literal["guided", "least variance"], share: float = 0.5) -> None:
        super().__init__(FixedBudget(share), None, horvitz_thompson=True, exploration=0.05)
        self._rule = rule

    def weights(self) -> Tensor:
        """Returns the weight of each block; see ``BlockSampling.weights``."""
        known = {name: (size, energy) for name, size, energy in energies()}
        table = torch.tensor([known[block.name] for block in self.blocks], dtype=torch.float64)
        sizes, found = table.unbind(1)
        return found.sqrt() if self._rule == "guided" else (sizes / found).sqrt()


def energies() -> list[tuple[str, float, float]]:
    """Returns name, size and energy of each block, as ``guidance.py`` has measured them."""
    with ENERGIES.open(newline="", encoding="utf-8") as lines:
        return [(row["block"], float(row["size"]), float(row["energy"])) for row in csv.DictReader(lines)]


def guided_by(rule: Literal["guided", "least variance"]) -> type[ZerothOrder]:
    """Returns MeZO with blocks that are sampled by the true gradient."""

    class Method(ZerothOrder):
        def __init__(self, model: nn.Module, *, lr: float, seed: int) -> None:
            super().__init__(model, lr=lr, seed=seed, selection=TrueEnergy(rule), estimator=SPSA())

    return Method


class Damped(Estimator):
    """Divides the move along a direction by a power of the curvature: w = 1 / max(1, |c|^α), a = w Δ / q.

    Δ = [L(θ + εu) - L(θ - εu)] / 2ε and c = [L(θ + εu) - 2 L(θ) + L(θ - εu)] / ε², with α = .1.

    Args:
        directions: q.
    """

    def __init__(self, directions: int) -> None:
        self.num_directions = directions

    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Estimates by central differences; see ``Estimator.estimate``."""
        steps = eps * torch.eye(self.num_directions, dtype=torch.float64)
        center = torch.zeros(1, self.num_directions, dtype=torch.float64)
        losses = evaluate(torch.cat([center, steps, -steps]))
        above, below = losses[1:].chunk(2)
        derivatives = (above - below) / (2.0 * eps)
        curvatures = (above - 2.0 * losses[0] + below) / eps**2
        weights = 1.0 / curvatures.abs().pow(0.1).clamp(min=1.0)
        return Estimate(weights * derivatives / self.num_directions, derivatives)


class DampedMeZO(ZerothOrder):
    """MeZO with directions of signs and the estimator above."""

    def __init__(self, model: nn.Module, *, lr: float, seed: int, directions: int) -> None:
        super().__init__(model, lr=lr, seed=seed, perturbation=Rademacher(), estimator=Damped(directions))


class SignMeZO(ZerothOrder):
    """MeZO with directions of signs."""

    def __init__(self, model: nn.Module, *, lr: float, seed: int, directions: int) -> None:
        super().__init__(model, lr=lr, seed=seed, perturbation=Rademacher(), estimator=SPSA(directions))
