"""Laws within a subspace: what they estimate, when the subspace changes, and that a step has one of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from zolit import AGZO, UserError, ZerothOrder
from zolit.blocks import trainable_weights
from zolit.perturbation import ActivationSubspace, LazyLowRank, OrthogonalSubspace, Perturbation


class Slope(nn.Module):
    """L(W, b) = ⟨G, W⟩ + ⟨g, b⟩: central differences are exact."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.gradient = torch.randn(*shape, generator=generator).double()
        self.weight = nn.Parameter(torch.zeros(*shape).double())
        self.bias = nn.Parameter(torch.zeros(5).double())

    def forward(self) -> Tensor:
        return (self.weight * self.gradient).sum() + self.bias.sum()


def estimates(law: Perturbation, model: Slope, steps: int) -> Tensor:
    """ĝ of the matrix, shape (steps, *shape)."""
    optimizer, found = ZerothOrder(model, lr=1.0, eps=1e-2, perturbation=law), []
    for _ in range(steps):
        optimizer.step(model)
        found.append(-model.weight.detach().clone())
        with torch.no_grad():
            model.weight.zero_()
            model.bias.zero_()
    return torch.stack(found)


def assert_mean(found: Tensor, expected: Tensor) -> None:
    """Within what chance allows: squared errors in standard errors are 1 on average."""
    errors = (found.mean(0) - expected) / (found.std(0) / len(found) ** 0.5)
    assert float(errors.square().mean()) == pytest.approx(1.0, abs=0.7)
    assert float((found.mean(0) - expected).norm()) < 0.6 * float(expected.norm())


def test_subzero_estimates_the_projected_gradient() -> None:
    """E[ĝ] = UUᵀ G VVᵀ."""
    model, law = Slope(7, 9), OrthogonalSubspace(rank=3, refresh=10**6, scale=False)
    found = estimates(law, model, 1000)
    u, v = next(iter(law._bases.values()))
    torch.testing.assert_close(u.t() @ u, torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(v.t() @ v, torch.eye(3), atol=1e-5, rtol=0)
    u, v = u.double(), v.double()
    assert_mean(found, u @ u.t() @ model.gradient @ v @ v.t())


def test_scaled_subzero_directions_are_as_long_as_dense_ones() -> None:
    law, model = OrthogonalSubspace(rank=4), Slope(30, 40)
    weight = trainable_weights(model)[0]
    law.begin(0, 0)
    factors = law.factors(weight, list(range(200)))
    assert float(factors.energies().mean()) == pytest.approx(1200, rel=0.1)


def test_lozo_estimates_the_projected_gradient() -> None:
    """E[ĝ] = G VVᵀ / r, given V."""
    model, law = Slope(7, 9), LazyLowRank(rank=2, refresh=10**6)
    found = estimates(law, model, 400)
    side = next(iter(law._sides.values())).double()
    assert_mean(found, model.gradient @ side.t() @ side / 2)


LAWS: dict[str, Callable[[], Perturbation]] = {
    "subzero": lambda: OrthogonalSubspace(rank=4, refresh=3),
    "lozo": lambda: LazyLowRank(rank=2, refresh=3),
}


@pytest.mark.parametrize("name", LAWS)
def test_sides_change_when_they_should_and_are_found_again(name: str) -> None:
    """Also by a run that is resumed amid a period, and by another model in which the weight has other neighbours."""
    model = Slope(6, 8)
    weight = trainable_weights(model)[0]

    def inputs(law: Perturbation, step: int) -> Tensor:
        law.begin(5, step)
        factors = law.factors(weight, [1])
        assert factors is not None
        return factors.inputs.clone()

    law = LAWS[name]()
    sides = [inputs(law, step) for step in range(7)]
    same = [torch.equal(one, other) for one, other in pairwise(sides)]
    assert same == [True, True, False, True, True, False]
    assert torch.equal(inputs(LAWS[name](), 4), sides[4])
    assert not torch.equal(inputs(LAWS[name](), 0), sides[3])


@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (1, 1), (6, 2, 3)])
@pytest.mark.parametrize("name", LAWS)
def test_all_shapes(name: str, shape: tuple[int, ...]) -> None:
    """Smaller than the rank, and of more dimensions than two."""
    model = Slope(*shape)
    found = estimates(LAWS[name](), model, 4)
    assert found.shape == (4, *shape)
    assert all(bool(one.any()) for one in found)


def test_out_of_range() -> None:
    for make in (lambda: OrthogonalSubspace(refresh=0), lambda: LazyLowRank(refresh=0)):
        with pytest.raises(UserError, match="refresh"):
            make()
    with pytest.raises(UserError, match="rank"):
        OrthogonalSubspace(rank=0)
    with pytest.raises(UserError, match="iterations"):
        ActivationSubspace(iterations=0)


class Reader(nn.Module):
    """Linear in its weights: example i loses rᵢᵀW xᵢ, and an embedding is tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 5, bias=False)
        self.embed = nn.Embedding(4, 5)
        self.head = nn.Linear(5, 4, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, inputs: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.layer(inputs)).mean((1, 2))


def test_agzo_estimates_the_gradient_within_the_leading_inputs() -> None:
    """E[ĝ] = G AAᵀ, A the leading right singular vectors of all that is not padding; found anew for each batch."""
    torch.manual_seed(0)
    model = Reader().double()
    inputs = torch.randn(3, 4, 8).double() * torch.tensor([5.0, 3.0, 1, 0.1, 0.1, 0.1, 0.1, 0.1]).double()
    mask = torch.ones(3, 4)
    mask[:, 0] = 0.0
    inputs[:, 0] = 1e3 * torch.randn(3, 8).double()  # what is said to be padding, and is huge

    def losses() -> Tensor:
        return model(inputs, attention_mask=mask)

    gradient = torch.autograd.grad(losses().mean(), model.layer.weight)[0]
    optimizer = AGZO(model, lr=1.0, eps=1e-6, rank=2, iterations=12)
    start, found = model.layer.weight.detach().clone(), []
    head = model.head.weight.detach().clone()
    for _ in range(300):
        optimizer.step(losses)
        found.append(start - model.layer.weight.detach())
        assert not torch.equal(model.head.weight, head)
        with torch.no_grad():
            model.layer.weight.copy_(start)
            model.head.weight.copy_(head)
    leading = torch.linalg.svd(inputs[:, 1:].flatten(0, 1)).Vh[:2].t()
    assert_mean(torch.stack(found), gradient @ leading @ leading.t())
    outside = torch.stack(found) @ (torch.eye(8).double() - leading @ leading.t())
    assert float(outside.norm()) < 1e-3 * float(torch.stack(found).norm())


def test_agzo_looks_at_each_batch_and_counts_it() -> None:
    model, bases = Reader(), []
    optimizer = AGZO(model, lr=1e-4, two_sided=True)
    law = optimizer.perturbation
    assert isinstance(law, ActivationSubspace)
    for seed in range(2):
        inputs = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(seed))
        inputs[..., seed] *= 5.0
        optimizer.step(lambda inputs=inputs: model(inputs))
        assert optimizer.last_step.forward_passes == 3
        (basis,) = law._bases.values()  # the head is tied to the embedding: dense
        bases.append(basis.clone())
        leading = torch.linalg.svd(inputs.flatten(0, 1)).Vh[0]
        assert abs(float(basis[:, 0] @ leading)) > 0.95
    assert abs(float(bases[0][:, 0] @ bases[1][:, 0])) < 0.9
