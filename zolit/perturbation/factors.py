"""Directions of low rank, several at a time, as what their products need."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Factors(NamedTuple):
    """k directions Uᵢ = Σⱼ fᵢⱼ aᵢⱼ bᵢⱼᵀ over one weight. A vector counts as a matrix of one column, b = 1.

    Attributes:
        outputs: a, shape (k, r, n), of the weight's type.
        inputs: b, shape (k, r, d), of the weight's type.
        scales: f, shape (k, r), float32.
    """

    outputs: Tensor
    inputs: Tensor
    scales: Tensor

    def add(
        self, piece: Tensor, start: int, stop: int, coefficients: Tensor | None = None, factor: float = 1.0
    ) -> None:
        """Adds f·Σᵢ cᵢUᵢ to a piece of the weight, by one thin matrix product.

        Args:
            piece: Shape (stop - start,), float32 or wider.
            start: First element; the piece is of whole rows, or lies within one.
            stop: One past the last element.
            coefficients: c, shape (k,), float32, on the piece's device; None is 1 for each.
            factor: f.
        """
        width = self.inputs.shape[2]
        first, column = divmod(start, width)
        rows = max((stop - start) // width, 1)
        factors = self.scales if coefficients is None else self.scales * coefficients.unsqueeze(1)
        left = self.outputs[:, :, first : first + rows].to(piece.dtype) * factors.to(piece.dtype).unsqueeze(2)
        right = self.inputs[:, :, column : column + (stop - start) // rows].to(piece.dtype)
        piece.view(rows, -1).addmm_(left.flatten(0, 1).t(), right.flatten(0, 1), alpha=factor)

    def energies(self) -> Tensor:
        """Returns ‖Uᵢ‖², shape (k,), float32."""
        outputs = self.outputs.float() * self.scales.unsqueeze(2)
        inputs = self.inputs.float()
        return (outputs @ outputs.mT * (inputs @ inputs.mT)).sum((1, 2))
