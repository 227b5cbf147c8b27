"""The span of the tokens of each example, and random combinations of the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

_SMALLEST = 1e-12
_RIDGE = 0.03
"""λ, which is added to the diagonal of X Xᵀ."""


class Span(NamedTuple):
    """The span of the tokens of each example. It is computed once for all layers that read the same activations.

    Attributes:
        inputs: The activations, shape (examples, tokens, d).
        version: Number of writes to the activations so far; None if torch does not count them.
        tokens: X, with rows of length 1, and rows of zeros for padding. Shape (examples, tokens, d), float32 or wider.
        radius: √T of each example, shape (examples, 1, 1).
        lower: L, with L Lᵀ = X Xᵀ + λI. Shape (examples, tokens, tokens).
    """

    inputs: Tensor
    version: int | None
    tokens: Tensor
    radius: Tensor
    lower: Tensor

    @classmethod
    def of(cls, inputs: Tensor, positions: Tensor | None) -> Span:
        """Computes the span of activations. Called if the latest span is of other activations.

        Args:
            inputs: The activations, shape (examples, tokens, d).
            positions: Position of each token, negative on padding, shape (examples, tokens); None without padding.
        """
        wide = torch.promote_types(inputs.dtype, torch.float32)
        tokens = inputs / torch.linalg.vector_norm(inputs, dim=2, keepdim=True, dtype=wide).clamp_(min=_SMALLEST)
        if positions is not None:
            tokens.mul_((positions >= 0).unsqueeze(2))
        gram = tokens @ tokens.mT
        gram.diagonal(dim1=1, dim2=2).add_(_RIDGE)
        lower, _ = torch.linalg.cholesky_ex(gram)  # with cholesky, the host would wait for a GPU
        radius = torch.linalg.matrix_norm(tokens, keepdim=True)
        return cls(inputs, _version(inputs), tokens, radius, lower)

    def is_of(self, inputs: Tensor) -> bool:
        """Returns whether this is the span of these activations. Called for each layer."""
        same = inputs.data_ptr() == self.inputs.data_ptr() and inputs.shape == self.inputs.shape
        return same and _version(inputs) == self.version is not None

    def combine(self, coefficients: Tensor) -> Tensor:
        """Returns the combinations Xᵀ L⁻ᵀ ρ of the tokens. Called once a step for each layer.

        Args:
            coefficients: Random numbers, shape (examples, r, tokens). ρ has their direction and the length √T.

        Returns:
            Shape (examples, r, d), float32 or wider.
        """
        rho = functional.normalize(coefficients.to(self.lower.dtype), dim=2, eps=_SMALLEST) * self.radius
        solved: Tensor = torch.linalg.solve_triangular(self.lower.mT, rho.mT, upper=True)
        return solved.mT @ self.tokens

    def bytes(self) -> int:
        """Returns the bytes of the span, activations included. Called when memory is reported."""
        return self.inputs.nbytes + self.tokens.nbytes + self.lower.nbytes


class SpanInputs(NamedTuple):
    """The input factors b of the directions of several examples, over one weight: combinations of their tokens.

    Attributes:
        keys: The key of the direction of each example.
        rows: b, shape (examples, r, d), of the type of the weight.
    """

    keys: tuple[int, ...]
    rows: Tensor

    def include(self, keys: Sequence[int]) -> bool:
        """Returns whether all these keys are known. Called when a layer runs."""
        return tuple(keys) == self.keys or self._index_of_key.keys() >= set(keys)

    def of(self, keys: Sequence[int]) -> Tensor:
        """Returns the rows of these keys, zeros for unknown keys, shape (examples, r, d). Called for factors."""
        if tuple(keys) == self.keys:
            return self.rows
        index_of_key, unknown = self._index_of_key, len(self.rows)
        places = [index_of_key.get(key, unknown) for key in keys]
        rows = functional.pad(self.rows, (0, 0, 0, 0, 0, 1)) if unknown in places else self.rows
        return rows.index_select(0, torch.tensor(places).to(rows.device, non_blocking=True))

    def joined(self, others: SpanInputs) -> SpanInputs:
        """Returns these rows followed by others. Called if a layer runs once for each micro-batch."""
        return SpanInputs(self.keys + others.keys, torch.cat([self.rows, others.rows]))

    @property
    def _index_of_key(self) -> dict[int, int]:
        # Of two equal keys, the first counts.
        return {key: index for index, key in reversed(list(enumerate(self.keys)))}


def _version(tensor: Tensor) -> int | None:
    """Returns the number of writes to a tensor so far; None in inference mode, where torch does not count them."""
    return None if tensor.is_inference() else tensor._version
