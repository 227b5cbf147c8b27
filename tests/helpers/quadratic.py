"""A quadratic loss over the coefficients of directions."""

from __future__ import annotations

import torch
from torch import Tensor

SLOPES = torch.tensor([3.0, -1.5, 0.25, -2.0], dtype=torch.float64)


def bent(queries: Tensor) -> Tensor:
    """Computes a quadratic with the slopes ``SLOPES`` and a curvature of 6 along each direction."""
    return 2.0 + queries @ SLOPES[: queries.shape[1]] + 3.0 * queries.square().sum(1)
