"""A calibration measures linear layers exactly, and tests the fit on batches that it has not fitted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.optim.feedback.test_jacobians import LAYERS, WIDTH, close, stream
from zolit import UserError
from zolit.optim.base_point import NotFinite
from zolit.optim.feedback.calibration import Calibration, Measured
from zolit.optim.feedback.equations import Equations


def measured(model: nn.Module, batches: list[Tensor], held_out: int = 1, seed: int = 0) -> Measured:
    calibration = Calibration(model, seed)
    for index, batch in enumerate(batches):
        calibration.add(lambda own=batch: model(own).square().mean(), index >= len(batches) - held_out)
    return calibration.solved()


def batches(count: int, *shape: int) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(*shape, WIDTH) for _ in range(count)]


def test_linear_layers_fit_entirely() -> None:
    """The ridge of .01 remains, and is not more than that."""
    model = stream()
    found = measured(model, batches(8, 16, 8))
    assert close(dict(enumerate(found.jacobians)), model, 0.02)  # type: ignore[arg-type]  # the keys do not matter
    assert len(found.fits) == LAYERS
    assert all(0.999 < fit <= 1.0 for fit in found.fits)
    assert found.forwards == 16
    assert 0.9 * 7 * 16 * 7 < found.tokens <= 7 * 16 * 7  # without first tokens, and without outliers


class Fork(nn.Module):
    """Layers whose Jacobian differs between inputs above and below 0."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Turn() for _ in range(2)])

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class Turn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + hidden.mean().sign() * self.part(hidden)


def test_the_fit_is_that_of_batches_that_were_held_out() -> None:
    """With the opposite Jacobian, R² = 1 - 2² = -3."""
    torch.manual_seed(0)
    model, inputs = Fork(), [batch + 5.0 for batch in batches(5, 16, 8)]
    assert measured(model, inputs).fits == pytest.approx([1.0, 1.0], abs=1e-3)
    opposite = measured(model, [*inputs[:-1], -inputs[-1]]).fits
    assert opposite[0] == pytest.approx(-3.0, abs=0.1)


def test_explained_is_what_residuals_say() -> None:
    torch.manual_seed(0)
    u, w = torch.randn(200, 5), torch.randn(200, 5)
    w += u @ torch.randn(5, 5)
    equations, jacobian = Equations(u), torch.randn(5, 5)
    equations.add(u, w, torch.ones(200, dtype=torch.bool))
    assert equations.tokens == 200
    for own in (jacobian, equations.solved()):
        expected = 1.0 - (w - u @ own.t()).square().sum() / w.square().sum()
        assert float(equations.explained(own)) == pytest.approx(float(expected), abs=1e-5)
    best = equations.explained(equations.solved())
    assert best > equations.explained(0.9 * equations.solved())


def test_a_layer_that_adds_nothing_fits() -> None:
    model = stream()
    with torch.no_grad():
        model.layers[1].part.weight.zero_()
    found = measured(model, batches(4, 8, 8))
    assert found.fits[1] == 1.0
    assert not found.jacobians[1].any()


def test_a_seed_decides() -> None:
    model, inputs = stream(), batches(3, 8, 8)
    first, second, other = (measured(model, inputs, seed=seed) for seed in (0, 0, 1))
    assert all(map(torch.equal, first.jacobians, second.jacobians))
    assert not torch.equal(first.jacobians[0], other.jacobians[0])


def test_what_is_not_finite_is_raised() -> None:
    model, calibration = stream(), Calibration(stream())
    with pytest.raises(NotFinite):
        calibration.add(lambda: model(torch.full((2, 3, WIDTH), torch.nan)).mean())


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(UserError, match="list of layers"):
        Calibration(nn.Linear(2, 2))
