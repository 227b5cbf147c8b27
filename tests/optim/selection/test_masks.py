"""Masks of single parameters: which parameters they hold, how they are stored, and when they change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny import layered, regression, seen_by, weights_of
from zolit import SensZOQ, SparseMeZO, UserError
from zolit.optim.blocks import trainable_weights
from zolit.optim.selection.bit_mask import BitMask, packed


@pytest.mark.parametrize("numel", [1, 7, 8, 9, 64, 1000])
def test_bits_hold_what_was_packed(numel: int) -> None:
    model = nn.Module()
    model.theta = nn.Parameter(torch.zeros(numel))
    (weight,) = trainable_weights(model)
    chosen = torch.rand(numel, generator=torch.Generator().manual_seed(0)) < 0.4
    bits = packed(chosen)
    assert bits.numel() == -(-numel // 8)
    mask = BitMask({"theta": bits})
    assert mask.counts == {"theta": int(chosen.sum())}
    for start, stop in [(0, numel), (numel // 3, numel), (numel // 2, numel // 2 + 1)]:
        assert torch.equal(mask.indicator(weight, start, stop), chosen[start:stop].float())
        assert torch.equal(mask.correction(weight, start, stop), torch.ones(stop - start))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_weights_move_and_no_others(dtype: torch.dtype) -> None:
    """The weights that are small before the first step; their later sizes do not matter."""
    model = layered(dtype)
    before = weights_of(model)
    optimizer, closure = SparseMeZO(model, lr=0.1, density=0.3), regression(model)
    for _ in range(20):
        optimizer.step(closure)
    for name, theta in before.items():
        moved = (weights_of(model)[name] != theta).flatten()
        sizes = theta.float().abs().flatten()
        kept = max(round(0.3 * theta.numel()), 1)
        small = sizes <= sizes.sort().values[kept - 1]
        assert not moved[~small].any(), name
        if dtype == torch.float32:
            assert bool(moved[small].all()), name
    report = optimizer.last_step.selection
    assert report.perturbed_parameters == int(report.budget)
    assert report.units == 132


def test_the_mask_is_renewed_when_it_is_due_and_only_then() -> None:
    """A step perturbs the weights that were small when the mask was made."""
    model = layered()
    optimizer, closure = SparseMeZO(model, lr=0.03, density=0.3, refresh=4), regression(model)
    perturbed = []
    for _ in range(9):
        theta, seen = weights_of(model), []

        def watched(seen: list[dict[str, Tensor]] = seen) -> Tensor:
            seen.append(seen_by(model))
            return closure()

        optimizer.step(watched)
        perturbed.append(torch.cat([(seen[0][name] != value).flatten() for name, value in theta.items()]))
    same = [torch.equal(perturbed[step], perturbed[step + 1]) for step in range(8)]
    assert same == [True, True, True, False, True, True, True, False]


def test_sensitive_weights_are_those_of_the_largest_gradients() -> None:
    """One backward pass before the first step finds them, over all tensors together."""
    model = layered()
    closure = regression(model)
    closure().mean().backward()
    sizes = torch.cat([parameter.grad.abs().flatten() for parameter in model.parameters()])
    expected = sizes >= sizes.topk(26).values[-1]
    model.zero_grad()
    before = weights_of(model)
    optimizer = SensZOQ(model, lr=0.1, density=26 / 132)
    for _ in range(5):
        optimizer.step(closure)
    moved = torch.cat([(weights_of(model)[name] != theta).flatten() for name, theta in before.items()])
    assert torch.equal(moved, expected)
    assert optimizer.last_step.total_backward_passes == 1
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("density", [0.0, 1.1, -0.5])
def test_out_of_range(density: float) -> None:
    for method in (SparseMeZO, SensZOQ):
        with pytest.raises(UserError, match="density"):
            method(layered(), density=density)
    with pytest.raises(UserError, match="refresh"):
        SparseMeZO(layered(), refresh=-1)
