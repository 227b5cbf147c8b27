"""Directions of different seeds, steps, indices and weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.draws import LAWS
from zolit.optim.blocks import BlockSample, partition, trainable_weights
from zolit.optim.perturbation.base import Perturbation
from zolit.optim.perturbation.directions import Directions
from zolit.optim.randomness import Step


@pytest.fixture(scope="module", params=LAWS, ids=lambda law: law.__name__)
def law(request: pytest.FixtureRequest) -> Perturbation:
    return request.param()


@pytest.mark.parametrize("what", ["seed", "step", "direction", "weight"])
def test_directions_are_uncorrelated_across(law: Perturbation, what: str) -> None:
    """The covariance over 200,000 elements of two draws whose keys differ in one part."""
    count = 200_000
    model = nn.Module()
    for name in ("a", "b"):
        model.register_parameter(name, nn.Parameter(torch.zeros(count)))
    blocks = partition(trainable_weights(model))
    ones = torch.ones(2, dtype=torch.float64)
    sample = BlockSample(blocks, torch.ones(2, dtype=torch.bool), ones, ones)

    def draw(seed: int = 0, step: int = 0, direction: int = 0, weight: int = 0) -> Tensor:
        law.begin_step(Step(seed, step))
        directions = Directions(sample, law, Step(seed, step), range(2))
        values, factor = directions.draw(direction, blocks[weight].weights[0], 0, count)
        return values.double() * factor

    base, other = draw(), draw(**{what: 1})
    assert not torch.equal(base, other)
    assert abs(float((base * other).mean())) < 5 / count**0.5
