"""First-order weights beside weights that another update moves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny import layered, regression, same, weights_of
from zolit import ZerothOrder
from zolit.optim import SGD, Adam, Backprop, LayerProjection


def optimizer_with_projections() -> ZerothOrder:
    """The head is trained by backpropagation; the layers move by MeZO, and are projected in every second step."""
    rest = LayerProjection(SGD(), every=2, steps=1, pattern="layers")
    update = Backprop(Adam(), lambda base: {w for w in optimizer._local_weights if w.name == "head.weight"}, rest)
    optimizer = ZerothOrder(layered(), lr=1e-3, update=update)
    return optimizer


def test_the_inner_update_takes_part_in_every_verb() -> None:
    optimizer = optimizer_with_projections()
    closure = regression(optimizer.model)
    passes = []
    for _ in range(3):
        optimizer.step(closure)
        assert optimizer.last_step is not None
        passes.append(optimizer.last_step.forward_passes)
    assert passes == [3, 3, 5]  # a projection takes two forwards
    assert optimizer.last_step.total_backward_passes == 3


@pytest.mark.parametrize("bad", [0, 1, 2, 3])
def test_a_skipped_step_undoes_the_projection(bad: int) -> None:
    optimizer = optimizer_with_projections()
    closure, calls = regression(optimizer.model), 0

    def sometimes() -> Tensor:
        nonlocal calls
        calls += 1
        return closure() * (math.nan if calls == bad + 1 else 1.0)

    for _ in range(2):
        optimizer.step(closure)
    before = weights_of(optimizer.model)
    with pytest.warns(RuntimeWarning, match="not all finite"):
        optimizer.step(sometimes)
    assert same(weights_of(optimizer.model), before)
    assert torch.isfinite(torch.tensor(optimizer.step(closure)))
