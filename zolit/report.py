"""What one zeroth-order step leaves behind for callbacks and logs.

A step measures; whoever wants to look reads the report. Callbacks get it from ``training_step`` as ``outputs["zo"]``
and import nothing else of the optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class SelectionReport:
    """Which blocks a step moved, and what the sampler knew.

    Attributes:
        names: The n blocks' names, in the optimizer's order.
        sizes: Parameters per block, shape (n,), int64.
        probabilities: Inclusion probability π of each block (per-parameter selection: its mean over the block),
            shape (n,), float64.
        chosen: Which blocks were perturbed, shape (n,), bool.
        scores: Smoothed curvature scores after this step (per-parameter selection: their sum over the block), shape
            (n,), float64; None where none are tracked.
        units: What is sampled: the number n of blocks, or d of parameters where selection is per parameter.
        budget: Expected number of sampled units, B = Σπ.
        clipped: Share of units whose π is 1, in [0, 1].
        perturbed_parameters: Parameters that were perturbed.
        effective_support: d_eff of the scores, in [1, units]; None where none are tracked.
        normalized_entropy: H of the scores, in [0, 1]; None where none are tracked.
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
    """One step in numbers.

    Attributes:
        step: Index of the step, from 0.
        loss: Mean of the step's losses, all ranks together.
        losses: Loss of each forward, shape (forwards,).
        coefficients: a: how far the weights move along each direction before the learning rate, shape (k,). For
            SPSA these are the projected gradients.
        forward_passes: Forwards of the whole batch that this step took.
        total_forward_passes: The same since the first step.
        skipped: True where a loss was not finite and the weights were left alone.
        skipped_steps: How many steps were skipped since the first.
        learning_rate: The rate that was used.
        selection: What was perturbed.
        total_backward_passes: Backward passes since the first step; 0 but for methods that are first order in part.
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
