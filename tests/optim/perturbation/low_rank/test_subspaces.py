"""Laws whose subspace stays for several steps: when it changes, and which shapes they accept."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.helpers.slope import Slope, estimates
from zolit import UserError
from zolit.optim.blocks import trainable_weights
from zolit.optim.perturbation.base import Perturbation
from zolit.optim.perturbation.low_rank.activation_subspace import ActivationSubspace
from zolit.optim.perturbation.low_rank.lazy_low_rank import LazyLowRank
from zolit.optim.perturbation.low_rank.orthogonal_subspace import OrthogonalSubspace
from zolit.optim.randomness import Step

LAWS: dict[str, Callable[[], Perturbation]] = {
    "subzero": lambda: OrthogonalSubspace(rank=4, refresh=3),
    "lozo": lambda: LazyLowRank(rank=2, refresh=3),
}


@pytest.mark.parametrize("name", LAWS)
def test_sides_change_with_the_period_and_are_reproduced(name: str) -> None:
    """A run that resumes within a period reproduces them too."""
    model = Slope(6, 8)
    weight = trainable_weights(model)[0]

    def inputs(law: Perturbation, step: int) -> Tensor:
        law.begin_step(Step(5, step))
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
    """Shapes smaller than the rank, and of more than two dimensions."""
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
