"""The second room: from which law is a direction drawn?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zolit.blocks import Weight
from zolit.closure import Look
from zolit.perturbation.factors import Factors
from zolit.ranks import Ranks
from zolit.scratch import CHUNK, chunk

if TYPE_CHECKING:  # who draw from a law, and thus import this room
    from zolit.directions import Directions
    from zolit.estimators.base import Estimate

_ROWS = 64


class Perturbation(ABC):
    """A law with mean 0 and covariance I, drawn anew from a key whenever it is needed and never stored.

    Subclasses draw float32 whatever the weights' type is, and by a generator of their own. Laws with another covariance
    say so.

    Attributes:
        factored: Whether ``factors`` answers for every weight: such a law can give each example its own direction.
        lasting: Whether what is drawn stays as it is until the next step begins.
        chunk: The most numbers that are drawn at a time.
    """

    factored: bool = False
    lasting: bool = False
    chunk: int = CHUNK

    def bind(self, weights: Sequence[Weight]) -> None:
        """Takes all trainable weights; called once, by the optimizer."""
        device = next((w.parameter.device for w in weights if not w.parameter.is_meta), torch.device("cpu"))
        self.chunk = chunk(device, [weight.parameter.numel() for weight in weights])

    def prepare(self, look: Look) -> None:
        """Sees, before a step's directions are drawn, what the law needs of the batch or of the model.

        Args:
            look: The loss at θ, and the model to watch meanwhile. What is learned from a rank's own batch must be made
                the same on all ranks, by ``look.ranks``. A look may raise: nothing may have been learned by then.
        """

    def begin(self, seed: int, step: int) -> None:
        """Begins a step. What depends on seed and step must be the same after another ``begin`` with them."""

    def ranges(self, weight: Weight) -> Sequence[tuple[int, int]]:
        """Returns the (start, stop) of the pieces in which a weight's direction is drawn: whole rows, at most a chunk.

        Pieces of more than 64 rows have a multiple of 64, which matrix products like. Rows longer than a chunk are cut.
        """
        shape = weight.parameter.shape
        return _pieces(shape[0] if len(shape) > 1 else shape.numel(), shape.numel(), self.chunk)

    @abstractmethod
    def draw(
        self, weight: Weight, key: int, start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, float]:
        """Draws elements start to stop of the direction of a weight.

        Args:
            weight: Gives the device, and the shape to laws that need it.
            key: What the draw is for: mixed from seed, step, direction and the weight's name.
            start: First element.
            stop: One past the last element; (start, stop) is one of ``ranges(weight)``.
            dtype: float32, or the weight's type where the caller would rather have that. The numbers are the same.

        Returns:
            z, shape (stop - start,), float32 or of the type asked for, valid until the next draw, and a factor f: the
            direction is f·z.
        """

    def rows(self, weight: Weight, key: int, ids: Tensor) -> Tensor | None:
        """Returns rows of the direction of a matrix where the law knows them without drawing all of it, else None.

        Args:
            weight: A matrix, in pieces of whole rows.
            key: What the draw is for.
            ids: Which rows, int64, shape (m,).

        Returns:
            Shape (m, d), float32 or of the weight's type.
        """
        return None

    def energy(self, weight: Weight, key: int, start: int, stop: int) -> float | None:
        """Returns ‖f·z‖² of a piece where the law knows it without going through it, else None."""
        return None

    def expect(self, keys: Mapping[Weight, Sequence[int]]) -> None:
        """Tells, once a step, by which keys directions of which weights are going to be drawn."""

    def guide(self, weight: Weight, keys: Sequence[int], inputs: Tensor | None, places: Tensor | None) -> None:
        """Shows a law the activations that directions are about to be applied to, one direction to each example.

        Args:
            weight: A matrix.
            keys: What names each example's direction.
            inputs: Shape (examples, tokens, d); None where rows of the weight are looked up or it is a vector.
            places: Where each token of the model's input stands in its example, -1 on padding, shape (examples,
                tokens), int64; None where the model is called without a mask.
        """

    def factors(self, weight: Weight, keys: Sequence[int]) -> Factors | None:
        """Returns the directions of a weight that several keys name, where the law has them as factors, else None."""
        return None

    def observe(self, directions: Directions, estimate: Estimate) -> None:
        """Learns from a step, after its update: the directions are drawn as they were until this returns.

        Args:
            directions: The step's.
            estimate: What was found out about them.
        """

    def exchange(
        self, own: Mapping[Weight, Sequence[int]], every: Mapping[Weight, Sequence[int]], ranks: Ranks
    ) -> None:
        """Gives all ranks what their examples' directions are made of, where that cannot be drawn from keys.

        Args:
            own: The keys of this rank's examples for each chosen weight.
            every: Those of all ranks' examples, in a row.
            ranks: The processes.
        """

    @abstractmethod
    def scratch_bytes(self) -> int:
        """Returns the bytes that are held for drawing."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs, by weight name, in tensors and plain Python values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a state that ``state_dict`` returned."""


@cache
def _pieces(rows: int, numel: int, most: int) -> tuple[tuple[int, int], ...]:
    row = numel // rows
    fitting = most // row
    length = row * (fitting - fitting % _ROWS if fitting > _ROWS else fitting) or most
    return tuple((start, min(start + length, numel)) for start in range(0, numel, length))
