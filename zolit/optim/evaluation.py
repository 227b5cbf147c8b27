"""Answers the queries of an estimator: counts forward passes, averages losses over ranks, and reuses L(θ)."""

from __future__ import annotations

import torch
from torch import Tensor

from zolit.optim.base_point import BasePoint, NotFinite
from zolit.optim.perturbation.directions import Directions
from zolit.optim.probing.base import Prober


class Evaluation:
    """Computes the losses that an estimator asks for. The optimizer makes one object for each step.

    Args:
        base: The base point of the step. It counts the forwards, and knows L(θ) if that was measured.
        prober: Computes losses at perturbed weights.
        directions: u_1 ... u_k.
        per_example: Whether each example has a separate direction.
        repeats_batch: Whether the closure repeats its batch ``Prober.batch_repeats`` times.
    """

    def __init__(
        self, base: BasePoint, prober: Prober, directions: Directions, per_example: bool, repeats_batch: bool
    ) -> None:
        self._base = base
        self._prober = prober
        self._directions = directions
        self._per_example = per_example
        self._repeats_batch = repeats_batch

    def __call__(self, queries: Tensor) -> Tensor:
        """Returns the losses at θ + Σᵢ C[q, i]·uᵢ. Called by the estimator, once or more a step.

        A row of zeros asks for L(θ). It costs no forward if a stage or an earlier call measured L(θ) in this step.

        Args:
            queries: C, shape (queries, k). For per-example estimators the shape is (queries, 1), and example i is
                evaluated at θ + C[q, 0]·uᵢ.

        Returns:
            Mean losses, shape (queries,), float64, on the CPU. For per-example estimators, the losses of the examples
            of all ranks, shape (queries, examples).

        Raises:
            NotFinite: If a loss is NaN or infinite.
        """
        if self._per_example:
            # A rank without examples cannot run the model, but the others wait for it: the gathering says so to all.
            alone = self._base.collectives.size == 1
            own = self._measured(queries) if alone or self._directions.count else queries.new_zeros(len(queries), 0)
            losses = self._base.collectives.all_gather(own).cpu().double()
            self._record(losses, losses.mean(1))
            return losses
        at_base = ~queries.any(1)
        answers = torch.full((len(queries),), self._base.known_loss or 0.0, dtype=torch.float64)
        asked = torch.ones_like(at_base) if self._base.known_loss is None else ~at_base
        if asked.any():
            losses = self._base.collectives.all_mean(self._measured(queries[asked])).cpu().double()
            self._record(losses, losses)
            answers[asked] = losses
        if at_base.any():
            self._base.known_loss = float(answers[at_base][0])
        return answers

    def _measured(self, queries: Tensor) -> Tensor:
        return self._prober.losses(self._base.closure, self._directions, queries, self._repeats_batch)

    def _record(self, losses: Tensor, means: Tensor) -> None:
        self._base.losses.extend(means.tolist())
        if not losses.isfinite().all():
            raise NotFinite
