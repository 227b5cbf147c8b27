"""The interface of laws whose directions are products of two thin matrices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from zolit.optim.blocks import Weight
from zolit.optim.collectives import Collectives
from zolit.optim.perturbation.base import Perturbation
from zolit.optim.precision import without_autocast


class Factors(NamedTuple):
    """The factors of k directions Uᵢ = Σⱼ fᵢⱼ aᵢⱼ bᵢⱼᵀ over one weight. A vector is a matrix of one column, with b = 1.

    Attributes:
        outputs: a, shape (k, r, n), of the type of the weight.
        inputs: b, shape (k, r, d), of the type of the weight.
        scales: f, shape (k, r), float32.
    """

    outputs: Tensor
    inputs: Tensor
    scales: Tensor

    def add_to(
        self, piece: Tensor, start: int, stop: int, coefficients: Tensor | None = None, factor: float = 1.0
    ) -> None:
        """Adds f·Σᵢ cᵢUᵢ to a piece of the weight by one thin matrix product. Called for draws and by the update.

        Args:
            piece: Shape (stop - start,), float32 or wider.
            start: Index of the first element. The piece consists of whole rows, or lies within one row.
            stop: Index after the last element.
            coefficients: c, shape (k,), float32, on the device of the piece; None is 1 for each direction.
            factor: f.
        """
        width = self.inputs.shape[2]
        first, column = divmod(start, width)
        rows = max((stop - start) // width, 1)
        factors = self.scales if coefficients is None else self.scales * coefficients.unsqueeze(1)
        left = self.outputs[:, :, first : first + rows].to(piece.dtype) * factors.to(piece.dtype).unsqueeze(2)
        right = self.inputs[:, :, column : column + (stop - start) // rows].to(piece.dtype)
        piece.view(rows, -1).addmm_(left.flatten(0, 1).t(), right.flatten(0, 1), alpha=factor)

    def squared_norms(self) -> Tensor:
        """Returns ‖Uᵢ‖², shape (k,), float32. Called by the update, if the selection needs squared norms."""
        outputs = self.outputs.float() * self.scales.unsqueeze(2)
        inputs = self.inputs.float()
        with without_autocast(inputs.device):
            return (outputs @ outputs.mT * (inputs @ inputs.mT)).sum((1, 2))


class FactoredPerturbation(Perturbation):
    """A law that returns its directions as factors. Thin matrix products then apply several directions at once."""

    factors_all_weights = True

    @abstractmethod
    def factors(self, weight: Weight, keys: Sequence[int]) -> Factors | None:
        """Returns several directions of a weight as factors. Called by per-example probes and by the update.

        Args:
            weight: A sampled weight.
            keys: The key of each direction; see ``Perturbation.draw``.

        Returns:
            The factors; None if this weight has dense directions.
        """

    def prefetch(self, keys: Mapping[Weight, Sequence[int]]) -> None:
        """Receives every key that the step will draw, so that a law can hash offsets in one batch.

        Called once a step before the first draw, and again if the examples change.

        Args:
            keys: The key of each direction, for each sampled weight.
        """

    def see_inputs(self, weight: Weight, keys: Sequence[int], inputs: Tensor | None, positions: Tensor | None) -> None:
        """Receives the activations to which the per-example directions of a weight are applied.

        Called by per-example probing before each product, in every forward of a step. A law may use only the
        first activations of each key and weight.

        Args:
            weight: A sampled weight.
            keys: The key of the direction of each example.
            inputs: Shape (examples, tokens, d); None if the weight is a vector, or an embedding in which rows are
                looked up.
            positions: Position of each row of the inputs in its example, -1 on padding, int64, shape (examples,
                tokens); None if the model is called without a mask.
        """

    def gather_examples(
        self, own: Mapping[Weight, Sequence[int]], every: Mapping[Weight, Sequence[int]], collectives: Collectives
    ) -> None:
        """Gives all ranks those parts of the per-example directions that cannot be drawn from keys.

        Called once a step after the estimate, if several ranks use per-example directions.

        Args:
            own: The keys of the examples of this rank, for each sampled weight.
            every: The keys of the examples of all ranks, rank after rank, for each sampled weight.
            collectives: The collectives of the run.
        """
