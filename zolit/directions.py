"""The k directions of one step: drawn again whenever a room asks, so that none is ever stored.

A direction is u = m ⊙ z: z from the perturbation, m from the selection. What the weights move along is û = w ⊙ u, where
w are the selection's weights (1/π with the Horvitz-Thompson correction). Probing adds u and the update adds û; both
come from here, so that the weights move along what was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from zolit.blocks import Block, Weight
from zolit.choice import Choice
from zolit.hashing import mix
from zolit.perturbation.base import Perturbation


class Directions:
    """Directions u_1 ... u_k over the chosen blocks of one step.

    Args:
        blocks: All n blocks, in the optimizer's order.
        choice: Which of them move, and with what weights.
        perturbation: The law of z.
        seed: Base seed of the run.
        step: Index of the step.
        count: The number k of directions.
    """

    def __init__(
        self, blocks: Sequence[Block], choice: Choice, perturbation: Perturbation, seed: int, step: int, count: int
    ) -> None:
        self.count = count
        self._choice = choice
        self._perturbation = perturbation
        self._keys = [mix(seed, step, direction) for direction in range(count)]
        self._corrections = choice.corrections.tolist()
        self._block_of = {
            weight: index
            for index, chosen in enumerate(choice.chosen.tolist())
            if chosen
            for weight in blocks[index].weights
        }
        device = blocks[0].weights[0].parameter.device
        self._energies = (
            torch.zeros(count, len(blocks), dtype=torch.float32, device=device) if choice.measure_energies else None
        )

    @property
    def weights(self) -> list[Weight]:
        """The weights of the chosen blocks."""
        return list(self._block_of)

    @property
    def energies(self) -> Tensor:
        """‖u_b‖² of every direction over every block, shape (k, n), as the update came across them."""
        assert self._energies is not None
        return self._energies

    def ranges(self, weight: Weight) -> Iterator[tuple[int, int]]:
        """Yields the (start, stop) of the pieces in which a weight's directions are drawn."""
        return self._perturbation.ranges(weight)

    def draw(self, direction: int, weight: Weight, start: int, stop: int) -> tuple[Tensor, float]:
        """Draws a piece of uᵢ over a chosen weight.

        Returns:
            v, shape (stop - start,), float32, valid until the next draw, and a factor f: the piece is f·v.
        """
        z, factor = self._perturbation.draw(weight, mix(self._keys[direction], weight.key), start, stop)
        mask = self._choice.mask
        return (z if mask is None else z * mask.indicator(weight, start, stop)), factor

    def add(self, piece: Tensor, weight: Weight, start: int, stop: int, coefficients: Sequence[float]) -> None:
        """Adds Σᵢ cᵢuᵢ to a piece of a chosen weight, shape (stop - start,), float32 or wider."""
        for direction, coefficient in enumerate(coefficients):
            if coefficient != 0.0:
                u, factor = self.draw(direction, weight, start, stop)
                piece.add_(u, alpha=coefficient * factor)

    def add_gradient(self, piece: Tensor, weight: Weight, start: int, stop: int, coefficients: Sequence[float]) -> None:
        """Adds Σᵢ aᵢûᵢ to a piece, and measures the energies; a weight that was not chosen has none.

        Args:
            piece: Shape (stop - start,), float32 or wider.
            weight: Any weight.
            start: First element.
            stop: One past the last element.
            coefficients: a, shape (k,), any factor included.
        """
        block = self._block_of.get(weight)
        if block is None:
            return
        for direction, coefficient in enumerate(coefficients):
            u, factor = self.draw(direction, weight, start, stop)
            if self._energies is not None:
                self._energies[direction, block] += factor**2 * torch.dot(u, u).to(self._energies.device)
            if self._choice.mask is not None:
                u = u * self._choice.mask.correction(weight, start, stop)
            piece.add_(u, alpha=coefficient * factor * self._corrections[block])
