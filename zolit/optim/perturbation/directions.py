"""The k directions of one step. They are never stored: a piece is drawn again whenever a stage needs it.

A direction is u = m ⊙ z, with z from the perturbation and m from the sample of the selection. Probing adds u to the
weights. The update adds û = w ⊙ u, where w is 1/π with the Horvitz-Thompson correction, and else 1. Both draw u here,
without autocast. The weights therefore move along the directions that were measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from zolit.optim.blocks import BlockSample, Weight
from zolit.optim.collectives import Collectives
from zolit.optim.perturbation.base import Perturbation
from zolit.optim.perturbation.factored import FactoredPerturbation, Factors
from zolit.optim.precision import without_autocast
from zolit.optim.randomness import Step, fold_in, fold_in_each


class Directions:
    """The directions u_1 ... u_k over the sampled blocks of one step. The optimizer makes one object for each step.

    Each direction has an integer id. The id is the index of the direction or, for per-example methods, the id of its
    example.

    Args:
        sample: The blocks that move.
        perturbation: The law of z, after ``begin_step``.
        step: The step.
        ids: The id of each direction, shape (k,). It is empty if the first forward has to count the examples.

    Attributes:
        sample: The blocks that move.
        weights: The weights of the sampled blocks.
        ids: The id of each direction, shape (k,).
        count: k, the number of directions.
    """

    def __init__(self, sample: BlockSample, perturbation: Perturbation, step: Step, ids: Sequence[int]) -> None:
        self.sample = sample
        self.weights: list[Weight] = [
            weight
            for block, chosen in zip(sample.blocks, sample.chosen.tolist(), strict=True)
            if chosen
            for weight in block.weights
        ]
        self._law = perturbation
        self._step_key = step.draw_key()
        self._set_ids(ids)

    def _set_ids(self, ids: Sequence[int]) -> None:
        self.ids = ids
        self.count = len(ids)
        self._keys: dict[Weight, list[int]] = {}

    def set_examples(self, ids: Sequence[int]) -> None:
        """Replaces the directions by one for each id. Called by per-example probing when it counts the examples."""
        self._set_ids(ids)
        self.prefetch()

    def gather_examples(self, collectives: Collectives) -> None:
        """Gathers the ids of the examples of all ranks, so that every rank updates along all directions.

        Called once a step, after the estimate. With one process it does nothing.
        """
        if collectives.size == 1:
            return
        own = {weight: self.keys(weight) for weight in self.weights}
        device = next(weight.parameter.device for weight in self.weights if not weight.parameter.is_meta)
        self.set_examples(collectives.all_gather(torch.tensor(self.ids, dtype=torch.int64, device=device)).tolist())
        if isinstance(self._law, FactoredPerturbation):
            self._law.gather_examples(own, {weight: self.keys(weight) for weight in self.weights}, collectives)

    def prefetch(self) -> None:
        """Passes all keys of the step to the law. Called before the first draw, and again if the examples change.

        See ``FactoredPerturbation.prefetch``.
        """
        if isinstance(self._law, FactoredPerturbation) and self.count:
            self._law.prefetch({w: self.keys(w) for w in self.weights if not w.parameter.is_meta})

    def keys(self, weight: Weight) -> list[int]:
        """Returns the key of each direction over a sampled weight, shape (k,). Called before each draw."""
        if not self._keys:
            seeds = np.array([fold_in(fold_in(id_, onto=self._step_key)) for id_ in self.ids], dtype=np.uint64)
            keys = fold_in_each([[weight.key] for weight in self.weights], seeds)
            self._keys = dict(zip(self.weights, keys.tolist(), strict=True))
        return self._keys[weight]

    @property
    def masked(self) -> bool:
        """Whether single parameters of sampled weights are left out. Their entries are 0."""
        return self.sample.mask is not None

    @property
    def draws_persist(self) -> bool:
        """Whether a drawn tensor keeps its values until the next step begins."""
        return self._law.draws_persist and self.sample.mask is None

    @property
    def chunk_size(self) -> int:
        """The largest number of elements that are drawn at a time."""
        return self._law.chunk_size

    def chunks(self, weight: Weight) -> Sequence[tuple[int, int]]:
        """Returns the (start, stop) of the pieces in which the directions of a weight are drawn."""
        return self._law.chunks(weight)

    def draw(
        self, direction: int, weight: Weight, start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, float]:
        """Draws a piece of uᵢ over a sampled weight. Called for each piece, in each probe and in the update.

        Args:
            direction: i, the index of the direction.
            weight: A sampled weight.
            start: Index of the first element.
            stop: Index after the last element; (start, stop) is one of ``chunks(weight)``.
            dtype: The type that the caller prefers: float32, or the type of the weight.

        Returns:
            v, shape (stop - start,), float32 or ``dtype``, valid until the next draw, and a factor f. The piece is f·v.
        """
        with without_autocast(weight.parameter.device):
            z, factor = self._law.draw(weight, self.keys(weight)[direction], start, stop, dtype)
            mask = self.sample.mask
            return (z if mask is None else z * mask.indicator(weight, start, stop)), factor

    def draw_rows(self, direction: int, weight: Weight, ids: Tensor) -> Tensor | None:
        """Draws single rows of uᵢ over a sampled matrix. Called for each lookup in an embedding on a GPU.

        Returns:
            Shape (m, d); None if a mask applies, or if the law can draw whole pieces only. See
            ``Perturbation.draw_rows``.
        """
        with without_autocast(weight.parameter.device):
            return None if self.sample.mask else self._law.draw_rows(weight, self.keys(weight)[direction], ids)

    def squared_norm(self, direction: int, weight: Weight, start: int, stop: int) -> float | None:
        """Returns ‖uᵢ‖² of a piece if the law knows it without a pass over it, else None. Called by the update."""
        if self.sample.mask is not None:
            return None
        with without_autocast(weight.parameter.device):
            return self._law.squared_norm(weight, self.keys(weight)[direction], start, stop)

    def factors(self, weight: Weight, first: int = 0, stop: int | None = None) -> Factors | None:
        """Returns directions first to stop - 1 of a sampled weight as factors. Called by per-example probes and update.

        Returns:
            The factors; None if a mask applies, or if the law has no factors for this weight.
        """
        if self.sample.mask is not None or not isinstance(self._law, FactoredPerturbation):
            return None
        with without_autocast(weight.parameter.device):
            return self._law.factors(weight, self.keys(weight)[first:stop])

    def see_inputs(
        self, weight: Weight, first: int, stop: int, inputs: Tensor | None, positions: Tensor | None
    ) -> None:
        """Passes to the law the activations that meet directions first to stop - 1 of a weight.

        Called by per-example probing before each product; see ``FactoredPerturbation.see_inputs``.
        """
        if isinstance(self._law, FactoredPerturbation):
            with without_autocast(weight.parameter.device):
                self._law.see_inputs(weight, self.keys(weight)[first:stop], inputs, positions)
