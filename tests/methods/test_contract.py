"""Tests that every method must pass."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zolit.methods
from tests.helpers.battery import FIRST_ORDER, METHODS, ORDERED, RATES, UNEVEN, made, model_for
from tests.helpers.tiny import regression, same, weights_of
from zolit import ZerothOrder

SLOW = {"senszoq", "bszo"}
"""Forms with defaults for large models: one of the 132 weights moves, or derivatives count as outliers."""

DRAWS_NOTHING = {*FIRST_ORDER, "direct feedback, identity"}  # except for the rounding of 16 bits

pytestmark = pytest.mark.filterwarnings("ignore:step. eps. .* is rounded away")  # the tiny model has large weights


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(name: str) -> Callable[..., ZerothOrder]:
    """Returns a function that builds the form on a model, with further options of the test."""
    return lambda model, **more: made(name, model, **more)


def test_every_method_is_in_the_battery() -> None:
    untested = set(zolit.methods.__all__) - {method for method, _ in METHODS.values()}
    assert untested == {"LinearProbe"}  # needs labels, and has tests of its own


@pytest.fixture
def layered(name: str) -> Callable[..., nn.Module]:
    """Returns the function that builds the model of the form."""
    return lambda *args, **options: model_for(name, *args, **options)


def trained(
    make: Callable[..., ZerothOrder],
    layered: Callable[..., nn.Module],
    steps: int,
    dtype: torch.dtype = torch.float32,
    order: tuple[str, ...] | None = None,
    **options: Any,
) -> tuple[nn.Module, ZerothOrder]:
    model = layered(dtype, order)
    optimizer = make(model, **options)
    closure = regression(model)
    for _ in range(steps):
        optimizer.step(closure)
    return model, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_seed_same_run(
    name: str, make: Callable[..., ZerothOrder], layered: Callable[..., nn.Module], dtype: torch.dtype
) -> None:
    wide = {"eps": 0.1} if dtype == torch.bfloat16 else {}  # bfloat16 would round smaller perturbations away
    runs = [trained(make, layered, 10, dtype, seed=seed, **wide) for seed in (3, 3, 4)]
    weights = [weights_of(model) for model, _ in runs]
    assert same(weights[0], weights[1])
    assert same(weights[0], weights[2]) == (name in DRAWS_NOTHING and dtype == torch.float32)
    assert runs[0][1].last_step.losses == runs[1][1].last_step.losses


def test_default_type_of_torch_does_not_matter(
    make: Callable[..., ZerothOrder], layered: Callable[..., nn.Module]
) -> None:
    """Under bf16-true, Lightning makes bfloat16 torch's default type."""
    model, first = trained(make, layered, 5, torch.bfloat16)
    other = layered(torch.bfloat16)
    optimizer, closure = make(other), regression(other)
    torch.set_default_dtype(torch.bfloat16)
    for _ in range(5):
        optimizer.step(closure)
    assert same(weights_of(model), weights_of(other))
    assert optimizer.last_step.selection.normalized_entropy == first.last_step.selection.normalized_entropy
    assert optimizer.last_step.selection.effective_support == first.last_step.selection.effective_support


@pytest.mark.parametrize("name", [name for name in METHODS if name not in {*ORDERED, "first order, last layer"}])
def test_order_of_parameters_does_not_matter(
    make: Callable[..., ZerothOrder], layered: Callable[..., nn.Module]
) -> None:
    """Draws and samples are the same bit for bit; sums over blocks, in π, may be rounded differently."""
    first, optimizer = trained(make, layered, 10)
    second, other = trained(make, layered, 10, order=("head", "norm", "layers", "embed"))
    assert [b.name for b in optimizer.blocks] != [b.name for b in other.blocks]
    mine, theirs = weights_of(first), weights_of(second)
    if optimizer.last_step.selection.scores is None:
        assert same(mine, theirs)
    assert all(torch.allclose(theta, theirs[name], rtol=0, atol=2e-6) for name, theta in mine.items())


def test_global_random_state_does_not_change(
    make: Callable[..., ZerothOrder], layered: Callable[..., nn.Module]
) -> None:
    model = layered(torch.bfloat16)
    optimizer, closure = make(model), regression(model)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for _ in range(3):
        optimizer.step(closure)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "dizo, often"])  # projects at every learning rate
def test_learning_rate_schedules(
    name: str, make: Callable[..., ZerothOrder], layered: Callable[..., nn.Module]
) -> None:
    model = layered()
    closure = regression(model)
    rate = RATES.get(name, 1e-3)
    optimizer = make(model, lr=2 * rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 if step < 3 else 0.0)
    rates = []
    for step in range(5):
        before = weights_of(model)
        optimizer.step(closure)
        scheduler.step()
        rates.append(optimizer.last_step.learning_rate)
        moved = max(float((weights_of(model)[name] - value).abs().max()) for name, value in before.items())
        assert (moved > 0.0) == (step < 3)
    assert rates == pytest.approx([rate, rate, rate, 0.0, 0.0])


@pytest.mark.parametrize("name", [name for name in METHODS if name not in SLOW])
def test_learns(make: Callable[..., ZerothOrder], layered: Callable[..., nn.Module]) -> None:
    model = layered()
    closure = regression(model)
    before = float(closure().detach().mean())
    optimizer = make(model)
    for _ in range(300):
        optimizer.step(closure)
    assert float(closure().detach().mean()) < 0.8 * before


@pytest.mark.parametrize("name", [name for name in METHODS if name not in UNEVEN])
def test_report_is_consistent(name: str, make: Callable[..., ZerothOrder], layered: Callable[..., nn.Module]) -> None:
    model = layered()
    optimizer = make(model, lr=1e-3)
    closure, calls = regression(model), 0
    for _ in range(40):  # the first steps make additional forwards, to check the model
        optimizer.step(closure)
    before = optimizer.last_step.total_forward_passes

    def counted() -> torch.Tensor:
        nonlocal calls
        calls += 1
        return closure()

    for step in range(6):
        loss = optimizer.step(counted)
        report, selection = optimizer.last_step, optimizer.last_step.selection
        assert report.step == step + 40
        assert report.total_forward_passes == before + calls
        assert report.forward_passes == len(report.losses) == calls // (step + 1)
        assert loss == report.loss == pytest.approx(sum(report.losses) / len(report.losses))
        assert len(report.coefficients) == (16 if optimizer.per_example else optimizer.estimator.num_directions)
        assert (report.skipped, report.skipped_steps) == (False, 0)
        assert report.learning_rate == 1e-3
        assert selection.names == tuple(block.name for block in optimizer.blocks)
        assert selection.sizes.tolist() == [block.numel for block in optimizer.blocks]
        count = len(selection.names)
        assert selection.probabilities.shape == selection.chosen.shape == (count,)
        assert selection.probabilities.dtype == torch.float64
        assert selection.chosen.dtype == torch.bool
        assert bool((selection.probabilities[selection.chosen] > 0.0).all())
        assert float(selection.probabilities.max()) <= 1.0
        candidates = selection.probabilities > 0.0 if name.startswith("dominant layer") else torch.ones(count).bool()
        total = int(selection.sizes[candidates].sum())
        if selection.units == int(candidates.sum()):
            # The probability of the likeliest block includes the probability that no block is drawn.
            excess = float(selection.probabilities.sum()) - selection.budget
            assert (
                -1e-9 <= excess < (0.3 if name == "dominant layer, by curvature" else 0.05)
            )  # it samples from two blocks
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
def test_resumed_run_equals_the_uninterrupted_one(
    make: Callable[..., ZerothOrder], layered: Callable[..., nn.Module], dtype: torch.dtype
) -> None:
    """A file keeps the state (``weights_only=True``), for an optimizer with another seed. Runs are equal to the bit."""
    whole, uninterrupted = trained(make, layered, 12, dtype)
    half, optimizer = trained(make, layered, 6, dtype)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "model": half.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    model = layered(dtype, seed=9)
    fresh = make(model, lr=0.5, seed=77)
    model.load_state_dict(saved["model"])
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probes_restore_the_weights_to_the_bit(
    make: Callable[..., ZerothOrder], layered: Callable[..., nn.Module], dtype: torch.dtype
) -> None:
    """At a learning rate of 0, a step does not change the weights."""
    model = layered(dtype)
    optimizer, closure = make(model, lr=0.0), regression(model)
    before = weights_of(model)
    for _ in range(4):
        optimizer.step(closure)
    assert same(weights_of(model), before)


class Falls:
    """A closure whose loss is not finite in call number ``bad``."""

    def __init__(self, model: nn.Module) -> None:
        self._closure = regression(model)
        self.calls, self.bad = 0, -1

    def __call__(self) -> Tensor:
        losses = self._closure()
        self.calls += 1
        return losses * math.nan if self.calls == self.bad else losses


def knowledge(state: object) -> list[Tensor]:
    """Returns copies of all tensors and numbers of a nested state."""
    if isinstance(state, dict):
        return [found for key, value in state.items() if key not in COUNTERS for found in knowledge(value)]
    if isinstance(state, list | tuple):
        return [found for value in state for found in knowledge(value)]
    return [state.clone()] if isinstance(state, Tensor) else [torch.tensor(state)] if isinstance(state, float) else []


COUNTERS = {"steps", "forwards", "backwards", "skipped", "skipped_in_a_row"}


def test_a_loss_that_is_not_finite_changes_neither_weights_nor_state(
    make: Callable[..., ZerothOrder], layered: Callable[..., nn.Module]
) -> None:
    model = layered(torch.bfloat16)
    optimizer, closure = make(model), Falls(model)
    for _ in range(3):
        optimizer.step(closure)
    for bad in range(1, optimizer.last_step.forward_passes + 1):
        before, known = weights_of(model), knowledge(optimizer.state_dict()["zo"])
        closure.bad = closure.calls + bad
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not all finite", category=RuntimeWarning)
            optimizer.step(closure)
        if closure.calls < closure.bad:  # a step of fewer forwards
            closure.bad = -1
            continue
        assert optimizer.last_step.skipped
        assert same(weights_of(model), before)
        assert all(map(torch.equal, knowledge(optimizer.state_dict()["zo"]), known))
        optimizer.step(closure)
        assert not optimizer.last_step.skipped


def test_state_of_16_bit_weights_is_wide(make: Callable[..., ZerothOrder], layered: Callable[..., nn.Module]) -> None:
    """All state is float32 or wider, except copies of the weights themselves."""
    _, optimizer = trained(make, layered, 3, torch.bfloat16)
    tensors = knowledge({key: value for key, value in optimizer.state_dict()["zo"].items() if key != "update"})
    assert not [tensor for tensor in tensors if tensor.is_floating_point() and tensor.dtype.itemsize < 4]
    velocities = knowledge(optimizer.state_dict()["zo"]["update"].get("velocities", {}))
    assert all(velocity.dtype == torch.float32 for velocity in velocities)
