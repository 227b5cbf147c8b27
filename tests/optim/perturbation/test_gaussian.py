"""Directions of normal numbers."""

from __future__ import annotations

import torch

from tests.helpers.draws import weight, whole
from zolit.optim.buffers import CPU_CHUNK
from zolit.optim.perturbation.gaussian import Gaussian


def test_gaussian_does_not_depend_on_threads() -> None:
    threads = torch.get_num_threads()
    try:
        draws = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            draws.append(whole(Gaussian(), weight(CPU_CHUNK + 70_001), 4))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])
