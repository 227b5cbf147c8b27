"""The report of one zeroth-order step, for callbacks and logs.

Callbacks get the report from ``training_step`` as ``outputs["zo"]``. They import no other part of the optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class SelectionReport:
    """The blocks that a step perturbed, and the statistics of the selection. ``Selection.report`` returns it.

    Attributes:
        names: Names of the n blocks, in the order of the optimizer.
        sizes: Number of parameters of each block, shape (n,), int64.
        probabilities: Inclusion probability π of each block (for a selection of single parameters: the mean of π over
            the block), shape (n,), float64. It is 0 for a block that this step cannot perturb.
        chosen: Whether each block was perturbed, shape (n,), bool.
        scores: Smoothed curvature score of each block after this step (for a selection of single parameters: the sum
            over the block), shape (n,), float64; None if the selection keeps no scores.
        units: Number of units among which the step chooses. These are n blocks or, for a selection of single
            parameters, d parameters. For a selection within one layer, these are the units of this layer.
        budget: Expected number of sampled units, B = Σπ.
        clipped: Share of units whose π is 1, in [0, 1].
        perturbed_parameters: Number of parameters that were perturbed.
        effective_support: d_eff of the scores, in [1, units]; None if the selection keeps no scores.
        normalized_entropy: H of the scores, in [0, 1]; None if the selection keeps no scores.
    """

    names: tuple[str, ...]
    sizes: torch.Tensor
    probabilities: torch.Tensor
    chosen: torch.Tensor
    scores: torch.Tensor | None
    units: int
    budget: float
    clipped: float
    perturbed_parameters: int
    effective_support: float | None
    normalized_entropy: float | None


@dataclass(frozen=True, slots=True)
class StepReport:
    """The numbers of one step. ``ZerothOrder.last_step`` holds it.

    Attributes:
        step: Index of the step, from 0.
        loss: Mean of ``losses``.
        losses: Mean loss of each forward over all ranks, shape (forwards,).
        coefficients: a, the coefficient of each direction in the gradient estimate, shape (k,). For SPSA these are the
            projected gradients.
        forward_passes: Number of forward passes over the batch in this step.
        total_forward_passes: Number of forward passes since the first step.
        skipped: Whether a loss was not finite, so that the weights did not move.
        skipped_steps: Number of skipped steps since the first step.
        learning_rate: The learning rate of this step.
        selection: The report of the selection.
        total_backward_passes: Number of backward passes since the first step; 0 for methods of forward passes only.
    """

    step: int
    loss: float
    losses: tuple[float, ...]
    coefficients: tuple[float, ...]
    forward_passes: int
    total_forward_passes: int
    skipped: bool
    skipped_steps: int
    learning_rate: float
    selection: SelectionReport
    total_backward_passes: int = 0
