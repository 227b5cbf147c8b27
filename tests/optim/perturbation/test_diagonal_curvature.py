"""HiZOO's diagonal: without learning it is MeZO, with learning it finds the ratios of the Hessian."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny import layered, regression, same, weights_of
from zolit import HiZOO, MeZO, UserError, ZerothOrder
from zolit.optim.estimators.central import Central
from zolit.optim.perturbation.diagonal_curvature import DiagonalCurvature
from zolit.optim.perturbation.gaussian import Gaussian
from zolit.optim.perturbation.low_rank.activation_guided import ActivationGuided
from zolit.optim.selection.small_weights import SmallWeights


def test_without_learning_it_is_mezo() -> None:
    """The weights are equal to the bit, with one more forward a step."""
    models = [layered(), layered()]
    one, other = HiZOO(models[0], lr=1e-3, smoothing=0.0), MeZO(models[1], lr=1e-3)
    closures = [regression(model) for model in models]
    for _ in range(5):
        one.step(closures[0])
        other.step(closures[1])
    assert same(weights_of(models[0]), weights_of(models[1]))
    assert one.last_step.losses[:2] == other.last_step.losses
    assert one.last_step.forward_passes == 3


class Bowl(nn.Module):
    """L = ½ Σ Hᵢθᵢ², with curvatures from 1 to 100."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(4))
        self.curvature = torch.logspace(0, 2, 4)

    def forward(self) -> Tensor:
        return (self.curvature * self.theta.square()).sum() / 2


def test_the_diagonal_finds_the_ratios_of_the_hessian() -> None:
    """h stays constant if h ∝ H. It therefore finds the ratios of the Hessian, but not its scale.

    The ratios are averaged over four runs: those of one run fluctuate by a quarter.
    """
    ratios = torch.zeros(4)
    for seed in range(4):
        model = Bowl()
        optimizer = HiZOO(model, lr=0.0, eps=1e-2, smoothing=1e-2, perturbation=Gaussian(), seed=seed)
        for _ in range(700):
            optimizer.step(model)
        law = optimizer.perturbation
        assert isinstance(law, DiagonalCurvature)
        own = law._diagonals["theta"] / model.curvature
        ratios += own / own.mean()
        assert law.scratch_bytes() > 4 * 4
    assert float(ratios.std() / ratios.mean()) < 0.3
    before = Bowl().curvature.reciprocal()
    assert float(before.std() / before.mean()) > 1.0


def test_one_step_follows_the_rule() -> None:
    """h ← (1 - α)h + α|l₊ + l₋ - 2l₀| hz²/2ε², with the z that was probed."""
    model, eps, alpha = Bowl(), 1e-2, 0.1
    optimizer = HiZOO(model, lr=0.0, eps=eps, smoothing=alpha, perturbation=Gaussian())
    h = torch.ones(4)
    for _ in range(3):
        seen: list[Tensor] = []

        def watched(seen: list[Tensor] = seen) -> Tensor:
            seen.append(model.theta.clone())
            return model()

        optimizer.step(watched)
        above, below, center = optimizer.last_step.losses
        z = (seen[0] - 1.0) / eps * h.sqrt()
        h = (1 - alpha) * h + alpha * abs(above + below - 2 * center) * h * z.square() / (2 * eps**2)
        law = optimizer.perturbation
        assert isinstance(law, DiagonalCurvature)
        torch.testing.assert_close(law._diagonals["theta"], h, rtol=1e-3, atol=1e-4)


def test_needs_curvatures() -> None:
    """The combination is refused before a step has moved a weight."""
    model = layered()
    with pytest.raises(UserError, match="estimator: DiagonalCurvature learns"):
        ZerothOrder(model, perturbation=DiagonalCurvature(0.1))
    with pytest.raises(UserError, match="smoothing"):
        HiZOO(model, smoothing=1.0)


def test_parameters_outside_of_a_mask_learn_nothing() -> None:
    model = layered()
    law = DiagonalCurvature(0.1)
    optimizer = ZerothOrder(model, selection=SmallWeights(0.5), perturbation=law, estimator=Central())
    before, closure = weights_of(model), regression(model)
    optimizer.param_groups[0]["lr"] = 1e-3
    for _ in range(5):
        optimizer.step(closure)
    for name, h in law._diagonals.items():
        moved = (weights_of(model)[name] != before[name]).flatten()
        assert bool((h[~moved] == 1.0).all()), name
        assert bool((h[moved] != 1.0).any()), name


def test_two_diagonals_are_refused() -> None:
    with pytest.raises(UserError, match="inner: DiagonalCurvature scales directions by curvatures"):
        DiagonalCurvature(inner=DiagonalCurvature())
    with pytest.raises(UserError, match="perturbation: DiagonalCurvature draws from each example's activations"):
        ZerothOrder(layered(), perturbation=DiagonalCurvature(inner=ActivationGuided()), estimator=Central())
