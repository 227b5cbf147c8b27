from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny import LinearLoss, layered, linear_loss, regression
from zolit import CurvZO, UserError, ZerothOrder
from zolit.optim.blocks import BlockSample
from zolit.optim.perturbation.base import Perturbation
from zolit.optim.perturbation.directions import Directions
from zolit.optim.perturbation.rademacher import Rademacher
from zolit.optim.randomness import Step
from zolit.optim.selection.all_blocks import AllBlocks
from zolit.optim.selection.curvature.budget import AdaptiveBudget, FixedBudget
from zolit.optim.selection.curvature.sampling import BlockSampling, CurvatureSampling, UniformSampling
from zolit.optim.selection.curvature.scores import BlockScores

SIZES = [1, 3, 8, 2]


class Fixed(BlockSampling):
    """A sampling with constant, unequal probabilities that records the measurements of each step."""

    def __init__(self, weights: Sequence[float], share: float, horvitz_thompson: bool = True) -> None:
        super().__init__(FixedBudget(share), BlockScores(), horvitz_thompson)
        self._constant = torch.tensor(weights, dtype=torch.float64)
        self.derivatives: list[float] = []
        self.squared_norms: list[Tensor] = []
        self.pi = torch.empty(0)

    def weights(self) -> Tensor:
        return self._constant

    def observe(
        self, sample: BlockSample, directions: Directions, derivatives: Sequence[float], squared_norms: Tensor
    ) -> None:
        self.derivatives += derivatives
        self.squared_norms += list(squared_norms)
        self.pi = sample.probabilities


def estimates(optimizer: ZerothOrder, model: LinearLoss, steps: int) -> Tensor:
    """Returns ĝ of each step, shape (steps, parameters): with lr = 1 the weights move by -ĝ."""
    rows = []
    for _ in range(steps):
        optimizer.step(model)
        rows.append(-torch.cat(list(model.get().values())))
    return torch.stack(rows)


def within(samples: Tensor, expected: Tensor) -> bool:
    """Returns whether the mean is within five standard errors."""
    error = samples.std(0) / len(samples) ** 0.5
    return bool(((samples.mean(0) - expected).abs() < 5 * error + 1e-9).all())


def gradient(model: LinearLoss) -> Tensor:
    return torch.cat(list(model.gradients.values()))


@pytest.mark.parametrize(
    ("horvitz_thompson", "law"),
    [(True, None), (False, None), (True, Rademacher())],
    ids=["corrected", "plain", "corrected, signs"],
)
def test_estimate_is_the_gradient_with_the_correction_and_biased_by_pi_without(
    horvitz_thompson: bool, law: Perturbation | None
) -> None:
    model = linear_loss(SIZES)
    selection = Fixed((1.0, 2.0, 4.0, 8.0), 0.5, horvitz_thompson)
    optimizer = ZerothOrder(model, lr=1.0, eps=1.0, selection=selection, perturbation=law)
    rows = estimates(optimizer, model, 1000)
    pi = selection.pi.repeat_interleave(torch.tensor(SIZES))
    expected = gradient(model) if horvitz_thompson else pi * gradient(model)
    assert within(rows, expected)
    wrong = pi * gradient(model) if horvitz_thompson else gradient(model)
    assert not within(rows, wrong)


@pytest.mark.parametrize("horvitz_thompson", [True, False])
def test_estimate_stays_exact_when_often_nothing_is_drawn(horvitz_thompson: bool) -> None:
    """Three blocks with Σπ = 0.3: in seven steps of ten none is drawn, and the likeliest one is perturbed."""
    model = linear_loss([2, 1, 3])
    selection = Fixed((1.0, 3.0, 2.0), 0.1, horvitz_thompson)
    optimizer = ZerothOrder(model, lr=1.0, eps=1.0, selection=selection)
    rows = estimates(optimizer, model, 1500)
    none = (1 - 0.05) * (1 - 0.15) * (1 - 0.1)
    assert torch.allclose(selection.pi, torch.tensor([0.05, 0.15 + none, 0.1], dtype=torch.float64))
    pi = selection.pi.repeat_interleave(torch.tensor([2, 1, 3]))
    assert within(rows, gradient(model) if horvitz_thompson else pi * gradient(model))
    assert bool((rows.abs().sum(1) > 0).all())


def test_curvature_is_unbiased_while_it_adapts() -> None:
    """E[ĝ] = g in every step for any past, so the mean over an adapting run is g too."""
    model = linear_loss(SIZES, seed=1)
    optimizer = CurvZO(model, lr=1.0, eps=1.0)
    assert within(estimates(optimizer, model, 1000), gradient(model))


def test_squared_norms_and_scores_of_real_steps() -> None:
    """Identities (27) without the normalization and (41), from the measurements of the optimizer's steps."""
    model = linear_loss(SIZES)
    selection = Fixed((1.0, 2.0, 2.0, 4.0), 0.6)
    optimizer = ZerothOrder(model, lr=1.0, eps=1.0, selection=selection)
    rows = estimates(optimizer, model, 1500)
    pi, sizes = selection.pi, torch.tensor(SIZES, dtype=torch.float64)
    norms = torch.stack([g.square().sum() for g in model.gradients.values()])
    bracket = (sizes + 2) * norms + sizes * ((pi * norms).sum() - pi * norms)
    squares = torch.tensor(selection.derivatives, dtype=torch.float64)[:, None] ** 2
    squared_norms = torch.stack(selection.squared_norms)
    none = float((1 - pi).prod())
    assert none < 0.02  # the identities hold for independent samples; here the fallback hardly ever acts
    assert within(squares * squared_norms, pi * bracket)
    # The squared norm of the estimate itself: E‖ĝ_b‖² = the same bracket / π (table 1a of the derivations).
    lengths = torch.stack([part.square().sum(1) for part in rows.split(SIZES, dim=1)], dim=1)
    assert within(lengths, bracket / pi)


def test_sample_frequencies_are_the_probabilities() -> None:
    model = linear_loss([1] * 8)
    optimizer = ZerothOrder(model, selection=Fixed(tuple(range(1, 9)), 0.5))
    samples = [optimizer.selection.select(Step(0, step)) for step in range(4000)]
    chosen = torch.stack([sample.chosen for sample in samples]).double()
    assert within(chosen, samples[0].probabilities)
    covariance = torch.cov(chosen.T)
    assert float((covariance - covariance.diag().diag()).abs().max()) < 0.02


def test_sample_of_a_block_depends_on_its_name_and_not_on_its_position() -> None:
    forward, backward = layered(), layered(order=("head", "norm", "layers", "embed"))
    picks = []
    for model in (forward, backward):
        optimizer = ZerothOrder(model, selection=UniformSampling(FixedBudget(0.5), None))
        chosen = [optimizer.selection.select(Step(0, step)).chosen.tolist() for step in range(50)]
        names = [block.name for block in optimizer.blocks]
        picks.append([{name for name, m in zip(names, row, strict=True) if m} for row in chosen])
    assert picks[0] == picks[1]


def test_samples_differ_between_seeds_and_steps() -> None:
    optimizers = [CurvZO(layered(), seed=seed) for seed in (0, 1)]
    rows = [[tuple(o.selection.select(Step(o.seed, step)).chosen.tolist()) for step in range(50)] for o in optimizers]
    assert rows[0] != rows[1]
    assert len(set(rows[0])) > 10


@pytest.mark.parametrize("blocks", [*range(3, 25), 48, 91, 96, 177, 182])
def test_full_budget_perturbs_everything(blocks: int) -> None:
    """n (1 - φ) / (1 - φ) is not n in floating point."""
    model = linear_loss([1] * blocks)
    optimizer = CurvZO(model, lr=1e-6, budget=1.0)
    optimizer.step(model)
    report = optimizer.last_step.selection
    assert report.chosen.all()
    assert report.budget == pytest.approx(blocks)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16])
def test_probabilities_do_not_depend_on_the_default_dtype(default: torch.dtype) -> None:
    """Lightning's bf16-true sets the default around every training step."""
    runs = []
    for dtype in (torch.float32, default):
        model = layered()
        closure = regression(model)
        optimizer = CurvZO(model, lr=1e-2)
        torch.set_default_dtype(dtype)
        try:
            for _ in range(5):
                optimizer.step(closure)
        finally:
            torch.set_default_dtype(torch.float32)
        runs.append(optimizer.last_step.selection)
    assert torch.equal(runs[0].probabilities, runs[1].probabilities)
    assert torch.equal(runs[0].scores, runs[1].scores)


# --- collapse --------------------------------------------------------------------------------------------------------


def collapse_model(seed: int) -> tuple[LinearLoss, Tensor]:
    """Returns 16 blocks: sizes log-uniform in 1 ... 200, gradient norms log-normal and independent of the sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(16, generator=generator).mul(math.log(200)).exp().round().long()
    gradients = {}
    for index, size in enumerate(sizes.tolist()):
        direction = torch.randn(size, generator=generator, dtype=torch.float64)
        gradients[f"b{index}"] = direction / direction.norm() * torch.randn((), generator=generator).exp()
    return LinearLoss(gradients), sizes.double()


def slope_against_size(probabilities: Tensor, sizes: Tensor) -> float:
    """Returns d log π / d log d of a least-squares line."""
    both = torch.cov(torch.stack([sizes.log(), probabilities.log()]))
    return float(both[0, 1] / both[0, 0])


def run_to_rest(seed: int, steps: int = 400, law: Perturbation | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    """Returns the geometric mean of π over the last hundred steps, and the sizes."""
    model, sizes = collapse_model(seed)
    optimizer = CurvZO(model, lr=0.0, eps=0.1, seed=seed, perturbation=law, **options)
    late = []
    for step in range(steps):
        optimizer.step(model)
        if step >= steps - 100:
            late.append(optimizer.last_step.selection.probabilities.log())
    return torch.stack(late).mean(0).exp(), sizes


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_literal_scores_collapse(seed: int) -> None:
    """With equation (8) as printed, π of small blocks falls without end."""
    probabilities, sizes = run_to_rest(seed, score="literal", exploration=0.0)
    assert float(probabilities.min()) < 1e-5
    assert slope_against_size(probabilities, sizes) > 2.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_default_scores_do_not_collapse(seed: int) -> None:
    """π grows with about the square root of a block's size, and no block is lost."""
    probabilities, sizes = run_to_rest(seed)
    assert float(probabilities.min()) > 0.1
    assert 0.1 < slope_against_size(probabilities, sizes) < 0.7


def test_the_default_rule_does_not_collapse_without_the_floor() -> None:
    probabilities, sizes = run_to_rest(0, exploration=0.0)
    assert float(probabilities.min()) > 0.05
    assert slope_against_size(probabilities, sizes) < 0.7


@pytest.mark.parametrize("score", ["corrected", "unbiased"])
def test_other_rules_keep_the_floor(score: str) -> None:
    probabilities, sizes = run_to_rest(0, steps=250, score=score)
    assert float(probabilities.min()) >= 0.05 - 1e-9
    assert slope_against_size(probabilities, sizes) < 0.8


def test_dividing_by_size_removes_the_size() -> None:
    """π is then nearly flat: the term that all blocks share dominates the score."""
    probabilities, sizes = run_to_rest(0, steps=250, divide_by_size=True)
    assert abs(slope_against_size(probabilities, sizes)) < 0.3


# --- options and state -----------------------------------------------------------------------------------------------


def test_uniform_with_an_adaptive_budget() -> None:
    model, _ = collapse_model(0)
    optimizer = CurvZO(model, lr=0.0, eps=0.1, sampling="uniform")
    budgets = []
    for _ in range(40):
        optimizer.step(model)
        report = optimizer.last_step.selection
        below = report.probabilities.sort().values[
            :-1
        ]  # the likeliest block includes the probability that no block is drawn
        assert float(below.max() - below.min()) < 1e-12
        budgets.append(report.budget / 16)
    assert budgets[0] == pytest.approx(0.8, abs=1e-6)
    assert 0.1 < budgets[-1] < 0.75


def test_exploration_must_stay_below_the_budget() -> None:
    for budget in (FixedBudget(0.05), AdaptiveBudget(0.05, 0.5)):
        with pytest.raises(UserError, match="exploration"):
            CurvatureSampling(budget, BlockScores(), exploration=0.05)
    with pytest.raises(UserError, match="exploration"):
        UniformSampling(FixedBudget(0.5), None, exploration=-0.1)


def test_scores_of_other_blocks_are_refused() -> None:
    state = CurvZO(layered(), blocks="layer").state_dict()
    with pytest.raises(UserError, match="blocks"):
        CurvZO(layered()).load_state_dict(state)


def test_all_blocks_are_reported() -> None:
    model = layered()
    optimizer = ZerothOrder(model, selection=AllBlocks())
    optimizer.step(regression(model))
    report = optimizer.last_step.selection
    assert report.chosen.all()
    assert torch.equal(report.probabilities, torch.ones(9, dtype=torch.float64))
    assert report.perturbed_parameters == sum(p.numel() for p in model.parameters())
    assert report.scores is None
