"""What every method must do, whatever it is."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny import layered, regression, same, weights_of
from zolit import CurvZO, MeZO, PerExample, ZerothOrder
from zolit.selection import BlockScores, Curvature, FixedBudget

METHODS = {
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
    "curvzo, by size": (CurvZO, {"divide_by_size": True, "directions": 2}),
}


@pytest.fixture(params=METHODS)
def make(request: pytest.FixtureRequest) -> Callable[..., ZerothOrder]:
    """Builds the method on a model, some options given by the test."""
    method, options = METHODS[request.param]

    def build(model: nn.Module, **more: Any) -> ZerothOrder:
        fresh = {name: value() if callable(value) else value for name, value in options.items()}
        return method(model, **{**fresh, **more})

    return build


def trained(
    make: Callable[..., ZerothOrder],
    steps: int,
    dtype: torch.dtype = torch.float32,
    order: tuple[str, ...] | None = None,
    **options: Any,
) -> tuple[nn.Module, ZerothOrder]:
    model = layered(dtype, order)
    optimizer = make(model, **{"lr": 1e-3, **options})
    closure = regression(model)
    for _ in range(steps):
        optimizer.step(closure)
    return model, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_seed_same_run(make: Callable[..., ZerothOrder], dtype: torch.dtype) -> None:
    runs = [trained(make, 10, dtype, seed=seed) for seed in (3, 3, 4)]
    weights = [weights_of(model) for model, _ in runs]
    assert same(weights[0], weights[1])
    assert not same(weights[0], weights[2])
    assert runs[0][1].last_step.losses == runs[1][1].last_step.losses


def test_default_type_of_torch_does_not_matter(make: Callable[..., ZerothOrder]) -> None:
    """Under bf16-true, Lightning makes bfloat16 torch's default type."""
    model, _ = trained(make, 5, torch.bfloat16)
    other = layered(torch.bfloat16)
    optimizer, closure = make(other, lr=1e-3), regression(other)
    torch.set_default_dtype(torch.bfloat16)
    for _ in range(5):
        optimizer.step(closure)
    assert same(weights_of(model), weights_of(other))


def test_order_of_parameters_does_not_matter(make: Callable[..., ZerothOrder]) -> None:
    """Draws and samples are the same bit for bit; sums over blocks, in π, may be rounded otherwise."""
    first, optimizer = trained(make, 10)
    second, other = trained(make, 10, order=("head", "norm", "layers", "embed"))
    assert [b.name for b in optimizer.blocks] != [b.name for b in other.blocks]
    mine, theirs = weights_of(first), weights_of(second)
    if optimizer.last_step.selection.scores is None:
        assert same(mine, theirs)
    assert all(torch.allclose(theta, theirs[name], rtol=0, atol=2e-6) for name, theta in mine.items())


def test_global_random_state_is_left_alone(make: Callable[..., ZerothOrder]) -> None:
    model = layered(torch.bfloat16)
    optimizer, closure = make(model), regression(model)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for _ in range(3):
        optimizer.step(closure)
    assert torch.equal(torch.get_rng_state(), state)


def test_learning_rate_schedules(make: Callable[..., ZerothOrder]) -> None:
    model = layered()
    closure = regression(model)
    optimizer = make(model, lr=2e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 if step < 3 else 0.0)
    rates = []
    for step in range(5):
        before = weights_of(model)
        optimizer.step(closure)
        scheduler.step()
        rates.append(optimizer.last_step.learning_rate)
        moved = max(float((weights_of(model)[name] - value).abs().max()) for name, value in before.items())
        assert (moved > 1e-5) == (step < 3)
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 0.0, 0.0])


def test_learns(make: Callable[..., ZerothOrder]) -> None:
    model = layered()
    closure = regression(model)
    before = float(closure().detach().mean())
    optimizer = make(model, lr=1e-3, eps=1e-3)
    for _ in range(300):
        optimizer.step(closure)
    assert float(closure().detach().mean()) < 0.6 * before


def test_report_is_consistent(make: Callable[..., ZerothOrder]) -> None:
    model = layered()
    optimizer = make(model, lr=1e-3)
    closure, calls = regression(model), 0
    for _ in range(10):  # the first steps of some methods make forwards more, to check the model
        optimizer.step(closure)
    before = optimizer.last_step.total_forward_passes

    def counted() -> torch.Tensor:
        nonlocal calls
        calls += 1
        return closure()

    for step in range(6):
        loss = optimizer.step(counted)
        report, selection = optimizer.last_step, optimizer.last_step.selection
        assert report.step == step + 10
        assert report.total_forward_passes == before + calls
        assert report.forward_passes == len(report.losses) == calls // (step + 1)
        assert loss == report.loss == pytest.approx(sum(report.losses) / len(report.losses))
        assert len(report.coefficients) == (16 if optimizer.individual else report.forward_passes // 2)
        assert (report.skipped, report.skipped_steps) == (False, 0)
        assert report.learning_rate == 1e-3
        assert selection.names == tuple(block.name for block in optimizer.blocks)
        assert selection.sizes.tolist() == [block.numel for block in optimizer.blocks]
        count = len(selection.names)
        assert selection.probabilities.shape == selection.chosen.shape == (count,)
        assert selection.probabilities.dtype == torch.float64
        assert selection.chosen.dtype == torch.bool
        assert float(selection.probabilities.min()) > 0.0
        assert float(selection.probabilities.max()) <= 1.0
        total = int(selection.sizes.sum())
        if selection.units == count:
            # The likeliest block's probability counts the chance that none is drawn.
            excess = float(selection.probabilities.sum()) - selection.budget
            assert -1e-9 <= excess < 0.05
            assert selection.perturbed_parameters == int(selection.sizes[selection.chosen].sum())
        else:
            assert selection.units == total
            assert selection.budget == pytest.approx(float((selection.probabilities * selection.sizes).sum()), rel=1e-6)
            assert 0 < selection.perturbed_parameters <= total
        assert 0.0 <= selection.clipped <= 1.0
        if selection.scores is None:
            assert selection.effective_support is None
            assert selection.normalized_entropy is None
        else:
            assert selection.scores.shape == (count,)
            assert selection.scores.dtype == torch.float64
            assert float(selection.scores.min()) >= 0.0
            assert 1.0 - 1e-6 <= selection.effective_support <= selection.units + 1e-6
            assert 0.0 <= selection.normalized_entropy <= 1.0 + 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_run_equals_the_uninterrupted_one(make: Callable[..., ZerothOrder], dtype: torch.dtype) -> None:
    """Through torch.save and torch.load(weights_only=True), into a fresh optimizer of another seed; bitwise."""
    whole, uninterrupted = trained(make, 12, dtype)
    half, optimizer = trained(make, 6, dtype)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "model": half.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    model = layered(dtype, seed=9)
    model.load_state_dict(saved["model"])
    fresh = make(model, lr=0.5, seed=77)
    fresh.load_state_dict(saved["optimizer"])
    closure = regression(model)
    for _ in range(6):
        fresh.step(closure)
    assert same(weights_of(model), weights_of(whole))
    mine, theirs = fresh.last_step, uninterrupted.last_step
    assert mine.losses == theirs.losses
    assert (mine.step, mine.total_forward_passes) == (theirs.step, theirs.total_forward_passes)
    assert torch.equal(mine.selection.probabilities, theirs.selection.probabilities)
    assert mine.selection.effective_support == theirs.selection.effective_support
