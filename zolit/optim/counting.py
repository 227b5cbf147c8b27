"""Counts steps and passes, warns of the first skipped step, and stops a run in which many are skipped in a row."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from zolit.errors import NonFiniteLossError
from zolit.optim.base_point import BasePoint
from zolit.optim.report import SelectionReport, StepReport

COUNTERS = ("steps", "forwards", "backwards", "skipped", "skipped_in_a_row")


def count(
    counts: dict[str, int],
    base: BasePoint,
    coefficients: Sequence[float],
    skipped: bool,
    lr: float,
    selection: SelectionReport,
) -> StepReport:
    """Adds a step to the counters, and returns its report. Called at the end of each step.

    Args:
        counts: The counters of the optimizer.
        base: The base point of the step.
        coefficients: a, shape (k,).
        skipped: Whether the weights did not move, because a loss or a gradient is not finite.
        lr: The learning rate.
        selection: The report of the selection.
    """
    counts["steps"] += 1
    counts["forwards"] += len(base.losses)
    counts["backwards"] += base.backward_passes
    counts["skipped"] += skipped
    counts["skipped_in_a_row"] = counts["skipped_in_a_row"] + 1 if skipped else 0
    losses = base.losses if base.recalled_loss is None else [base.recalled_loss]
    return StepReport(
        step=base.step.index,
        loss=sum(losses) / len(losses),
        losses=tuple(base.losses),
        coefficients=tuple(coefficients),
        forward_passes=len(base.losses),
        total_forward_passes=counts["forwards"],
        skipped=skipped,
        skipped_steps=counts["skipped"],
        learning_rate=lr,
        selection=selection,
        total_backward_passes=counts["backwards"],
    )


def warn_or_stop(counts: Mapping[str, int], max_skipped: int, trouble: str, moved: bool) -> None:
    """Warns of a skipped step, or stops the run. Called after each skipped step.

    Args:
        counts: The counters of the optimizer, with this step.
        max_skipped: Number of skipped steps in a row after which the run stops.
        trouble: What is not finite.
        moved: Whether other weights have moved in this step.

    Raises:
        NonFiniteLossError: If this is the ``max_skipped``-th skipped step in a row.
    """
    in_a_row = counts["skipped_in_a_row"]
    message = f"step {counts['steps'] - 1}: {trouble}"
    if in_a_row >= max_skipped:
        raise NonFiniteLossError(
            f"{message}, for {in_a_row} steps in a row (max_skipped): lower lr or eps, or check the data and the "
            "precision"
        )
    if counts["skipped"] == 1:
        rest = "this weight did not move, and the others did" if moved else "the weights did not move"
        warnings.warn(
            f"{message}; {rest}. The report counts skipped steps; this warning comes once",
            RuntimeWarning,
            stacklevel=6,  # outside of torch's wrappers of step
        )
