from __future__ import annotations

import pytest
import torch

from tests.helpers.tiny import LinearLoss, layered, linear_loss, regression
from zolit import CurvZO, UserError
from zolit.optim.perturbation.rademacher import Rademacher
from zolit.optim.randomness import Step


@pytest.mark.parametrize("horvitz_thompson", [True, False])
def test_estimate_is_the_gradient_with_the_correction_and_shrinks_without(horvitz_thompson: bool) -> None:
    """With lr = 1 the weights move by -ĝ; its mean is g although scores adapt and every parameter is sampled."""
    model = linear_loss([3, 4], seed=2)
    optimizer = CurvZO(model, lr=1.0, eps=1.0, blocks="parameter", budget=0.3, horvitz_thompson=horvitz_thompson)
    rows = []
    for _ in range(1000):
        optimizer.step(model)
        rows.append(-torch.cat(list(model.get().values())))
    samples, g = torch.stack(rows), torch.cat(list(model.gradients.values()))
    along = samples @ g / g.square().sum()
    error = 5 * float(along.std()) / 1000**0.5
    if horvitz_thompson:
        assert float(along.mean()) == pytest.approx(1.0, abs=error)
        assert error < 0.5
        assert bool(((samples.mean(0) - g).abs() < 5 * samples.std(0) / 1000**0.5).all())
    else:
        assert float(along.mean()) == pytest.approx(0.3, abs=0.2)


def test_mask_frequency_and_counts() -> None:
    model = linear_loss([500, 300])
    optimizer = CurvZO(model, lr=1.0, eps=1e-3, blocks="parameter", budget=0.3, smoothing=1e-9)
    moved = torch.zeros(800)
    for _ in range(60):
        optimizer.step(model)
        now = torch.cat(list(model.get().values())) != 0.0
        report = optimizer.last_step.selection
        assert report.perturbed_parameters == int(now.sum())
        assert report.units == 800
        assert report.budget == pytest.approx(240.0, rel=1e-5)
        assert float((report.probabilities * report.sizes).sum()) == pytest.approx(report.budget, rel=1e-6)
        moved += now
    assert float(moved.sum()) == pytest.approx(60 * 240, abs=5 * (60 * 800 * 0.21) ** 0.5)
    assert float(moved.max()) < 60


def test_parameters_with_large_gradients_are_sampled_more_often() -> None:
    """A parameter with ten times the gradient of the others gets the largest π: 3 g_i² exceeds Σ π g²."""
    gradient = torch.ones(6, dtype=torch.float64)
    gradient[4] = 10.0
    model = LinearLoss({"w": gradient})
    optimizer = CurvZO(model, lr=0.0, eps=1.0, blocks="parameter", budget=0.4, smoothing=0.02)
    mean = torch.zeros(6)
    for step in range(600):
        optimizer.step(model)
        if step >= 200:
            mean += optimizer.selection.select(Step(0, step)).mask.probabilities / 400
    assert int(mean.argmax()) == 4
    assert float(mean[4]) > 1.2 * float(mean[:4].mean())


@pytest.mark.parametrize("score", ["sampled", "corrected", "literal", "unbiased"])
def test_rules_run_and_keep_the_floor(score: str) -> None:
    model = layered()
    optimizer = CurvZO(model, lr=1e-2, blocks="parameter", score=score)
    for step in range(30):
        optimizer.step(regression(model))
        pi = optimizer.selection.select(Step(0, step)).mask.probabilities
        assert float(pi.min()) >= 0.05 - 1e-6
        assert float(pi.max()) <= 1.0


@pytest.mark.parametrize("count", [3, 6, 12, 24, 91, 96, 101])
def test_full_budget_with_equal_scores(count: int) -> None:
    """Random signs give every parameter the same score, and φ + (1 - φ) π must still come out as 1."""
    model = linear_loss([count])
    optimizer = CurvZO(model, lr=1e-3, blocks="parameter", budget=1.0, perturbation=Rademacher())
    for _ in range(4):
        optimizer.step(model)
    assert optimizer.last_step.selection.perturbed_parameters == count


@pytest.mark.parametrize("smoothing", [0.0, -1.0, 2.0])
def test_smoothing_out_of_range(smoothing: float) -> None:
    with pytest.raises(UserError, match="smoothing"):
        CurvZO(layered(), blocks="parameter", smoothing=smoothing)


def test_state_of_another_kind_is_refused() -> None:
    """Scores of tensors cannot be loaded as scores of parameters."""
    with pytest.raises(UserError, match="selection CurvatureSampling"):
        CurvZO(layered(), blocks="parameter").load_state_dict(CurvZO(layered()).state_dict())
