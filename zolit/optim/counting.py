"""Counts steps and passes, warns of the first skipped step, and stops a run in which many are skipped in a row."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from zolit.errors import NonFiniteLossError
from zolit.optim.base_point import BasePoint

COUNTERS = ("steps", "forwards", "backwards", "skipped", "skipped_in_a_row")


def count(counts: dict[str, int], base: BasePoint, skipped: bool) -> None:
    """Adds a step to the counters. Called at the end of each step."""
    counts["steps"] += 1
    counts["forwards"] += len(base.losses)
    counts["backwards"] += base.backward_passes
    counts["skipped"] += skipped
    counts["skipped_in_a_row"] = counts["skipped_in_a_row"] + 1 if skipped else 0


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
