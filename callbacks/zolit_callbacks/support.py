"""Monitors whether the curvature scores still distinguish blocks, and whether a few blocks have almost all scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import lightning.pytorch as pl
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override

from zolit.optim.report import SelectionReport, StepReport
from zolit_callbacks.boards import is_due, log_scalars

Health = Literal["healthy", "collapsed", "flat"]


class SupportMonitor(pl.Callback):
    """Logs how concentrated the curvature scores are, and warns when they have collapsed or are flat.

    Every ``every_n_steps`` steps it writes three scalars. Units are blocks, or parameters if selection is per
    parameter.

    - ``support/effective``: the effective support d_eff = (Σ√s)² / Σs, from 1 to the number of units,
    - ``support/effective_share``: the same as a share of the units,
    - ``support/entropy``: the normalized entropy of √s / Σ√s, from 0 (one unit has everything) to 1 (all are equal).

    Two states make sampling by curvature useless. The scores have *collapsed* if the share or the entropy is below
    ``collapsed_below``. Nearly all units then hardly ever move, and 1/π makes each of their moves very large. The
    scores are *flat* if the share is above ``flat_above``. They then do not distinguish units, and the sampling is
    nearly uniform.
    The callback warns when the run enters such a state. It warns again only after the run has clearly left the state
    (by twice the margin). It does not warn in the first ``patience`` steps, because each run starts flat. The state is
    kept in checkpoints.

    A selection without scores (MeZO, uniform sampling) has no support; the callback then logs nothing.

    Example:
        trainer:
          callbacks:
            - class_path: zolit_callbacks.SupportMonitor
              init_args:
                every_n_steps: 10
                collapsed_below: 0.05

    Args:
        every_n_steps: Logging and checking interval, in steps.
        collapsed_below: The scores count as collapsed if the effective support, as a share of the units, or the
            normalized entropy is below this value.
        flat_above: The scores count as flat if the effective support, as a share of the units, is above this
            value.
        patience: Number of first steps of the run without warnings.
    """

    def __init__(
        self,
        every_n_steps: PositiveInt = 10,
        collapsed_below: ClosedUnitInterval = 0.05,
        flat_above: ClosedUnitInterval = 0.98,
        patience: NonNegativeInt = 200,
    ) -> None:
        super().__init__()
        self._every_n_steps = every_n_steps
        self._collapsed_below = collapsed_below
        self._flat_above = flat_above
        self._patience = patience
        self._health: Health = "healthy"

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Logs and checks the step's scores if the step is due."""
        if not is_due(trainer, self._every_n_steps):
            return
        assert isinstance(outputs, Mapping)
        report: StepReport = outputs["zo"]
        selection = report.selection
        if selection.effective_support is None or selection.normalized_entropy is None:
            return
        share, entropy = selection.effective_support / selection.units, selection.normalized_entropy
        log_scalars(
            trainer,
            {
                "support/effective": selection.effective_support,
                "support/effective_share": share,
                "support/entropy": entropy,
            },
        )
        if report.step >= self._patience:
            health = self._classify(share, entropy)
            if health != self._health:
                self._health = health
                self._warn(report.step, selection, share, entropy)

    def _classify(self, share: float, entropy: float) -> Health:
        """Returns the state, given the numbers and the previous state."""
        below = self._collapsed_below * (2.0 if self._health == "collapsed" else 1.0)
        margin = (1.0 - self._flat_above) * (2.0 if self._health == "flat" else 1.0)
        if min(share, entropy) < below:
            return "collapsed"
        return "flat" if share > 1.0 - margin else "healthy"

    def _warn(self, step: int, selection: SelectionReport, share: float, entropy: float) -> None:
        """Warns that a state was entered, with its numbers and possible remedies."""
        numbers = (
            f"at step {step} the effective support is {selection.effective_support:.1f} of {selection.units} units "
            f"({share:.1%}) and the normalized entropy {entropy:.3f}"
        )
        if self._health == "collapsed":
            rank_zero_warn(
                f"The curvature distribution has collapsed: {numbers}. Most of the model is hardly ever moved, and "
                "then with large corrections 1/π. Raise `exploration` or `budget_min`, lower `smoothing`, or use "
                "another score than `literal`, which reinforces its own choices."
            )
        elif self._health == "flat":
            rank_zero_warn(
                f"The curvature distribution is flat: {numbers}. Sampling by these scores is no better than uniform "
                "sampling. Raise `smoothing` if the scores lag behind, do not divide them by the blocks' sizes, or use "
                "MeZO, which computes no scores."
            )

    @override
    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the last warning."""
        return {"health": self._health}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a state that ``state_dict`` returned."""
        self._health = state_dict["health"]
