"""AGZO's directions, within the leading inputs of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.helpers.slope import assert_mean
from zolit import AGZO
from zolit.optim.perturbation.low_rank.activation_subspace import ActivationSubspace


class Reader(nn.Module):
    """A model that is linear in each weight; its head is tied to an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 5, bias=False)
        self.embed = nn.Embedding(4, 5)
        self.head = nn.Linear(5, 4, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, inputs: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.layer(inputs)).mean((1, 2))


def test_agzo_estimates_the_gradient_within_the_leading_inputs() -> None:
    """E[ĝ] = G AAᵀ, with A the leading right singular vectors of the inputs that are not padding."""
    torch.manual_seed(0)
    model = Reader().double()
    inputs = torch.randn(3, 4, 8).double() * torch.tensor([5.0, 3.0, 1, 0.1, 0.1, 0.1, 0.1, 0.1]).double()
    mask = torch.ones(3, 4)
    mask[:, 0] = 0.0
    inputs[:, 0] = 1e3 * torch.randn(3, 8).double()  # masked as padding, and large

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


def test_agzo_evaluates_each_batch_and_counts_it() -> None:
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
