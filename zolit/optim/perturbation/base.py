"""Stage 2 of a step: the law from which directions are drawn."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from zolit.optim.blocks import Block, Weight
from zolit.optim.buffers import CPU_CHUNK, chunk_size, pieces
from zolit.optim.randomness import Step
from zolit.optim.stage import Stage


class DrawnDirections(Protocol):
    """The directions of one step, as ``Perturbation.observe`` receives them."""

    @property
    def weights(self) -> Sequence[Weight]:
        """The weights of the sampled blocks."""
        ...

    @property
    def masked(self) -> bool:
        """Whether single parameters of these weights are left out. Their entries are 0."""
        ...

    def chunks(self, weight: Weight) -> Sequence[tuple[int, int]]:
        """Returns the (start, stop) of the pieces in which the directions of a weight are drawn."""
        ...

    def draw(
        self, direction: int, weight: Weight, start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, float]:
        """Draws a piece of a direction again, with the mask applied; see ``Perturbation.draw``."""
        ...


class Perturbation(Stage):
    """A law (probability distribution) of random directions, with mean 0 and covariance I.

    Directions are drawn from keys and never stored. Subclasses draw from a private generator or from a hash. They draw
    float32 numbers for all types of weights. A law with another covariance documents it.

    Attributes:
        draws_persist: Whether a drawn tensor keeps its values until the next step begins.
        factors_all_weights: Whether the law returns the directions of every weight as factors, as a
            ``FactoredPerturbation``. Only such a law can give each example a separate direction.
        needs_examples: Whether the law draws from the activations of single examples.
        needs_curvatures: Whether the law learns from the curvatures that the estimator measures.
        chunk_size: The largest number of elements that are drawn at a time.
    """

    draws_persist: bool = False
    factors_all_weights: bool = False
    needs_examples: bool = False
    needs_curvatures: bool = False
    chunk_size: int = CPU_CHUNK

    def bind(self, model: nn.Module, weights: Sequence[Weight], blocks: Sequence[Block]) -> None:
        """Sets the chunk size for the model; see ``Stage.bind``."""
        device = next((w.parameter.device for w in weights if not w.parameter.is_meta), torch.device("cpu"))
        self.chunk_size = chunk_size(device, [weight.parameter.numel() for weight in weights])

    def begin_step(self, step: Step) -> None:
        """Begins a step. Called once a step, after ``Selection.select`` and before the first draw.

        Another call with the same step must give the same draws.
        """

    def chunks(self, weight: Weight) -> Sequence[tuple[int, int]]:
        """Returns the (start, stop) of the pieces in which the direction of a weight is drawn.

        Called by probers and updates, which process a weight piece by piece. A piece consists of whole rows and is at
        most a chunk. A piece of more than 64 rows has a multiple of 64 rows, because matrix products then run faster.
        Only rows longer than a chunk are split.
        """
        return pieces(weight.parameter.shape, self.chunk_size)

    @abstractmethod
    def draw(
        self, weight: Weight, key: int, start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, float]:
        """Draws one piece of the direction of a weight. Called for each piece, in each probe and in the update.

        Args:
            weight: The weight. Its device, and in some laws its shape, determine the draw.
            key: Key of this direction and weight, hashed from seed, step, direction and the name of the weight.
            start: Index of the first element.
            stop: Index after the last element; (start, stop) is one of ``chunks(weight)``.
            dtype: The type that the caller prefers: float32, or the type of the weight. The numbers are the same.

        Returns:
            z, shape (stop - start,), float32 or ``dtype``, valid until the next draw, and a factor f. The direction is
            f·z.
        """

    def draw_rows(self, weight: Weight, key: int, ids: Tensor) -> Tensor | None:
        """Draws single rows of the direction of a matrix. Called for each lookup in an embedding on a GPU.

        Args:
            weight: A matrix, in pieces of whole rows.
            key: See ``draw``.
            ids: Indices of the rows, int64, shape (m,).

        Returns:
            Shape (m, d), float32 or of the type of the weight. None if the law can draw whole pieces only.
        """
        return None

    def squared_norm(self, weight: Weight, key: int, start: int, stop: int) -> float | None:
        """Returns ‖f·z‖² of a piece if the law knows it without a pass over the piece, else None.

        Called by the update for each piece and direction, if the selection needs squared norms.
        """
        return None

    def observe(self, directions: DrawnDirections, curvatures: Tensor | None) -> None:
        """Learns from a step. Called once a step, after the update; not called if the step is skipped.

        Args:
            directions: The directions of the step. Draws do not change until this method returns.
            curvatures: The second derivative of the loss along each direction, shape (k,); None if the estimator does
                not measure it.
        """
