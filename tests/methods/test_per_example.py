"""The estimate of per-example directions is unbiased, and has the variance that the page derives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zolit import MeZO, PerExample, UserError
from zolit.optim.base_point import Closure
from zolit.optim.collectives import Collectives
from zolit.optim.optimizer import ZerothOrder


class Tiny(nn.Module):
    """An embedding, a norm and two layers with biases: every kind of weight, 51 weights in total."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.norm = nn.LayerNorm(3)
        self.up = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.up(self.norm(self.embed(ids))))).mean((1, 2))


def estimates(optimizer: ZerothOrder, closure: Closure, steps: int) -> Tensor:
    """Returns ĝ of each step at the same weights, shape (steps, weights)."""
    weights = [weight for block in optimizer.blocks for weight in block.weights]
    start = torch.cat([weight.flat for weight in weights])
    found = []
    for _ in range(steps):
        optimizer.step(closure)
        found.append(start - torch.cat([weight.flat for weight in weights]))
        for weight, theta in zip(weights, start.split([w.flat.numel() for w in weights]), strict=True):
            weight.flat.copy_(theta)
    return torch.stack(found)


@pytest.mark.parametrize("rank", [1, 2])
def test_estimate_is_unbiased(rank: int) -> None:
    torch.manual_seed(0)
    model = Tiny().double()
    ids = torch.tensor([[0, 1, 2], [1, 1, 3], [2, 0, 0], [3, 2, 1]])

    def losses() -> Tensor:
        return (model(ids) - torch.arange(4)).square()

    losses().mean().backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    steps = 1000
    found = estimates(PerExample(model, lr=1.0, eps=1e-4, rank=rank, guided=False), losses, steps)
    errors = (found.mean(0) - gradient) / (found.std(0) / steps**0.5)
    assert float(errors.abs().max()) < 4.5
    assert float(errors.square().mean()) == pytest.approx(1.0, abs=0.8)


class Slopes(nn.Module):
    """The loss of example i is rᵢᵀWxᵢ, and its gradient is rᵢxᵢᵀ."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, rows, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs).sum(1)


@pytest.mark.parametrize("aligned", [True, False])
def test_variance_against_mezo(aligned: bool) -> None:
    """E‖ĝ - g‖² = [(n + 2)(d + 2) mean‖gᵢ‖² - mean‖gᵢ‖²] / batch, and (nd + 1) ‖g‖² for MeZO, as the page derives."""
    rows, width, batch, steps = 10, 12, 8, 700
    model = Slopes(rows, width).double()
    inputs = torch.ones(batch, width).double() if aligned else torch.eye(batch, width).double() * width**0.5
    gradient = inputs.mean(0).expand(rows, -1).flatten()
    own, together = rows * width, float(gradient.square().sum())
    assert together == pytest.approx(own if aligned else own / batch)
    errors = []
    for optimizer in (PerExample(model, lr=1.0, eps=1e-2, guided=False), MeZO(model, lr=1.0, eps=1e-2)):
        found = estimates(optimizer, lambda: model(inputs), steps)
        errors.append(float((found - gradient).square().sum(1).mean()))
    assert errors[0] == pytest.approx(((rows + 2) * (width + 2) - 1) * own / batch, rel=0.2)  # 5 % of chance
    assert errors[1] == pytest.approx((rows * width + 1) * together, rel=0.2)


class Tokens(Slopes):
    """The loss of example i is Σₜ rᵀWxₜ, over tokens that do not span the space."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs).sum((1, 2))


def test_guided_directions_are_unbiased_with_the_variance_of_the_tokens_span() -> None:
    """E‖ĝ - g‖² = [(n + 2) T - 1] mean‖gᵢ‖² / batch, with T instead of d + 2. λ lowers it by a few hundredths."""
    torch.manual_seed(0)
    rows, width, tokens, batch, steps = 16, 40, 4, 8, 1000
    model = Tokens(rows, width).double()
    basis = torch.linalg.qr(torch.randn(width, batch * tokens, dtype=torch.float64)).Q.T
    inputs = basis.view(batch, tokens, width) * torch.tensor([0.1, 1.0, 1.0, 3.0]).unsqueeze(1)
    own = rows * float(inputs.square().sum((1, 2)).mean())
    gradient = inputs.sum(1).mean(0).expand(rows, -1).flatten()
    found = estimates(PerExample(model, lr=1.0, eps=1e-2), lambda: model(inputs), steps)
    within = basis.T @ basis
    outside = found.view(steps, rows, width) @ (torch.eye(width, dtype=torch.float64) - within)
    assert float(outside.abs().max()) < 1e-6
    errors = (found.mean(0) - gradient / 1.03) / (found.std(0) / steps**0.5)
    assert float(errors.abs().max()) < 4.5
    variance = float((found - found.mean(0)).square().sum(1).mean())
    assert variance == pytest.approx(((rows + 2) * tokens - 1) * own / batch / 1.03**2, rel=0.2)  # 5 % of chance


def test_normalized_steps_are_of_one_length() -> None:
    model = Slopes(40, 50)
    optimizer = PerExample(model, lr=1e-3, guided=False, normalize=True)
    for scale in (1.0, 1e3):
        before = model.layer.weight.detach().clone()
        optimizer.step(lambda scale=scale: scale * model(torch.eye(5, 50)))
        length = float((model.layer.weight.detach() - before).norm())
        assert length == pytest.approx(1e-3 * (2000 / 5) ** 0.5, rel=0.3)


def test_the_direction_of_an_example_depends_on_its_id_alone() -> None:
    """In another order, examples keep their derivatives. In another step, they have other derivatives."""
    model = Slopes(2, 6)
    inputs = torch.randn(4, 6)
    found = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        optimizer = PerExample(model, lr=0.0, guided=False)
        optimizer.step(lambda order=order: model(inputs[order]), examples=[10 + place for place in order])
        found.append(dict(zip(order, optimizer.last_step.coefficients, strict=True)))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    optimizer.step(lambda: model(inputs), examples=[10, 11, 12, 13])
    assert optimizer.last_step.coefficients[0] != pytest.approx(found[0][0], rel=1e-2)


@pytest.mark.parametrize("names", [[0, 1, 2], [0, 1, 2, 3, 4]])
def test_all_examples_need_ids_or_none(names: list[int]) -> None:
    model, inputs = Slopes(2, 6), torch.randn(4, 6)
    with pytest.raises(UserError, match=f"step: {len(names)} examples are named"):
        PerExample(model, lr=4e-5).step(lambda: model(inputs), examples=names)


def test_rank_must_be_positive() -> None:
    with pytest.raises(UserError, match="rank"):
        PerExample(Slopes(2, 3), rank=0)


class Twins(Collectives):
    """Collectives of two ranks with the same examples."""

    size = 2

    def all_gather(self, own: Tensor) -> Tensor:
        return torch.cat([own, own], dim=-1)


def test_examples_of_several_ranks_need_ids() -> None:
    model, inputs = Slopes(2, 6), torch.randn(4, 6)
    optimizer = PerExample(model, lr=4e-5, guided=False)
    optimizer.collectives = Twins()
    with pytest.raises(UserError, match="examples need ids"):
        optimizer.step(lambda: model(inputs))
    optimizer.step(lambda: model(inputs), examples=[0, 1, 2, 3])
    assert len(optimizer.last_step.coefficients) == 8
