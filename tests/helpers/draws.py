"""Weights of zeros, and whole directions that a law draws for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zolit.optim.blocks import Weight
from zolit.optim.perturbation.base import Perturbation
from zolit.optim.perturbation.gaussian import Gaussian
from zolit.optim.perturbation.gaussian_pool import GaussianPool
from zolit.optim.perturbation.rademacher import Rademacher
from zolit.optim.randomness import key_of

LAWS = [Gaussian, Rademacher, GaussianPool]


def weight(*shape: int, name: str = "w", dtype: torch.dtype = torch.float32) -> Weight:
    """Returns a weight of zeros."""
    return Weight(name, nn.Parameter(torch.zeros(shape, dtype=dtype)), key_of(name))


def whole(law: Perturbation, to: Weight, key: int) -> Tensor:
    """Returns a whole direction, of the weight's shape. A piece is valid until the next draw, so each is copied."""
    pieces = []
    for start, stop in law.chunks(to):
        values, factor = law.draw(to, key, start, stop)
        assert values.shape == (stop - start,)
        assert values.dtype == torch.float32
        pieces.append(values * factor)
    return torch.cat(pieces).view(to.parameter.shape)
