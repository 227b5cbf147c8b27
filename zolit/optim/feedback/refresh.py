"""Moves the mean Jacobian of a layer towards that of the present weights, by one forward with noise."""

from __future__ import annotations

import torch
from torch import Tensor

from zolit.optim.feedback.equations import without_outliers
from zolit.optim.precision import without_autocast

TOKENS = 128
"""Most tokens of a call of a layer that count."""
_GAIN = 0.15
_RIDGE = 0.1


class Correction:
    """Corrects A by the equations w = A u of few tokens; u and w are those of ``Equations``.

    With a token in each row of U and W,

        A ← A + μ (W - U Aᵀ)ᵀ (U Uᵀ + λI)⁻¹ U.

    This is the affine projection of adaptive filters (Ozeki and Umeda, Electronics and Communications in Japan 1984)
    for rows of outputs. It needs a matrix of tokens × tokens, and no sums of d × d. μ is .15, because the Jacobian of a
    token differs from the mean, and a step should average many tokens. λ is .1 of the mean diagonal of U Uᵀ.

    Args:
        kind: The type in which u and w are kept.
    """

    def __init__(self, kind: torch.dtype) -> None:
        self._kind = kind
        self._equations: list[list[Tensor]] = []

    @property
    def device(self) -> torch.device:
        """The device of the equations."""
        return self._equations[0][0].device

    def add(self, u: Tensor, w: Tensor, counts: Tensor) -> None:
        """Adds one equation for each token that counts; see ``Equations.add``."""
        self._equations.append([change.to(self._kind) for change in without_outliers(u, w, counts)])

    def of(self, jacobian: Tensor) -> Tensor:
        """Returns what is added to A, shape (d, d), float32; 0 without equations.

        Args:
            jacobian: A, shape (d, d), float32.
        """
        u, w = (torch.cat(parts).float() for parts in zip(*self._equations, strict=True))
        with without_autocast(u.device):
            squares = u @ u.t()
            squares.diagonal().add_((_RIDGE * squares.diagonal().mean()).clamp(min=1e-30))
            factor, _ = torch.linalg.cholesky_ex(squares)
            errors = w - u @ jacobian.t()
            return _GAIN * errors.t() @ torch.cholesky_solve(u, factor)
