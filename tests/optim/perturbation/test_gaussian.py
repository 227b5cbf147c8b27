"""Directions of normal numbers."""

from __future__ import annotations

import torch

from tests.helpers.draws import weight, whole
from zolit.optim.buffers import CPU_CHUNK
from zolit.optim.perturbation.gaussian import Gaussian, _table
from zolit.optim.randomness import fold_in

ALIKE = [(11303, 113690), (28400, 46972), (39817, 193266), (42926, 226772), (50513, 234769), (58880, 223480)]
"""Positions whose correlation was .5 to .8 when their numbers in the table differed in upper bits alone."""


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


def test_positions_are_not_correlated_over_keys() -> None:
    """These pairs, neighbors, and the two halves of a piece, over 400 keys: the standard error is .05."""
    first, second = torch.tensor(ALIKE).unbind(1)
    firsts = torch.cat([first, *[torch.arange(200) for _ in range(3)]])
    seconds = torch.cat([second, *[torch.arange(200) + shift for shift in (1, 2, CPU_CHUNK // 2)]])
    law, theta, products, squares = Gaussian(), weight(CPU_CHUNK), 0.0, 0.0
    for key in range(400):
        z, factor = law.draw(theta, fold_in(key), 0, CPU_CHUNK)
        left, right = z[firsts] * factor, z[seconds] * factor
        products = products + left * right / 400
        squares = squares + (left.square() - 1.0) * (right.square() - 1.0) / 800
    assert float(products.abs().max()) < 0.25
    assert float(squares.abs().max()) < 0.4


def test_numbers_of_the_table_differ_in_their_lower_bits() -> None:
    assert len((_table().long() & (CPU_CHUNK - 1)).unique()) == CPU_CHUNK
    assert len((_table().long() >> 19).unique()) == 1 << 13
