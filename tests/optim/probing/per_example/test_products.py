"""Functions that per-example probing computes with a perturbed weight, and how a user adds one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from tests.helpers.directions import directions_of, moved_along
from zolit import PerExample, UserError
from zolit.optim.probing.per_example import products

INPUTS = torch.linspace(-1.0, 1.0, 4 * 3 * 5, dtype=torch.float64).view(4, 3, 5)


def shift(input: Tensor, weight: Tensor) -> Tensor:
    """Adds a vector to activations: a user's own function, which torch does not know."""
    if has_torch_function((input, weight)):
        return handle_torch_function(shift, (input, weight), input, weight)
    return input + weight


def shift_each(input: Tensor, weight: Any) -> Tensor:
    """Adds θ + c·uᵢ to the activations of example i."""
    flat = weight.probe.by_example(input, weight, "shift")
    return (flat + weight.probe.vectors(weight).unsqueeze(1)).view(input.shape)


class Shift(nn.Module):
    """A layer that computes with the user's function."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(shift(inputs, self.weight)).sum((1, 2))


@torch.no_grad()
def test_a_users_product_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def counted(input: Tensor, weight: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return shift_each(input, weight)

    monkeypatch.setitem(products.PRODUCTS, shift, counted)
    model = Shift()
    optimizer = PerExample(model, lr=0.0)
    directions = directions_of(optimizer, 0)
    queries = torch.tensor([[0.1], [-0.1]], dtype=torch.float64)
    found = optimizer.prober.losses(lambda: model(INPUTS), directions, queries)
    assert calls == 3  # one for each query, and one in the check
    for query, losses in zip(queries[:, 0].tolist(), found, strict=True):
        for index in range(len(INPUTS)):
            with moved_along(directions, index, query):
                assert float(losses[index]) == pytest.approx(float(model(INPUTS)[index]), rel=1e-7)
    assert not torch.equal(found[0], found[1])


def test_without_the_product_the_layer_is_refused() -> None:
    model = Shift()
    with pytest.raises(UserError, match="weight is used in shift"):
        PerExample(model, lr=4e-5).step(lambda: model(INPUTS))
