"""Directions of random signs."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.draws import weight, whole
from zolit.optim.buffers import CPU_CHUNK
from zolit.optim.perturbation.rademacher import Rademacher


@pytest.mark.parametrize("numel", [1, 7, 8, 9, 15, 16, 17, 1001])
def test_rademacher_is_plus_or_minus_one(numel: int) -> None:
    law = Rademacher()
    whole(law, weight(CPU_CHUNK), 1)  # fills the buffers with other draws
    z = whole(law, weight(numel), 3)
    assert torch.equal(z.abs(), torch.ones(numel))


def test_the_eight_signs_of_a_byte_are_independent() -> None:
    z = whole(Rademacher(), weight(1 << 19), 4).view(-1, 8).double()
    covariance = z.T @ z / len(z)
    assert float((covariance - torch.eye(8)).abs().max()) < 5 / len(z) ** 0.5
    assert float(z.mean(0).abs().max()) < 5 / len(z) ** 0.5
