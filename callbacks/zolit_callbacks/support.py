"""Whether the sampler still tells blocks apart without having staked everything on a few."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import lightning.pytorch as pl
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override

from zolit.report import SelectionReport, StepReport
from zolit_callbacks.boards import is_due, log_scalars

Health = Literal["healthy", "collapsed", "flat"]


class SupportMonitor(pl.Callback):
    """Logs how concentrated the curvature scores are, and warns when they have collapsed or are flat.

    Every ``every_n_steps`` steps it writes three scalars: among how many units (blocks; parameters where selection is
    per parameter) are the scores effectively spread?

    - ``support/effective``: the effective support d_eff = (Σ√s)² / Σs, from 1 to the number of units,
    - ``support/effective_share``: the same as a share of the units,
    - ``support/entropy``: the normalized entropy of √s / Σ√s, from 0 (one unit has it all) to 1 (all are equal).

    Two states defeat the purpose of sampling by curvature. The distribution has *collapsed* when the share or the
    entropy is below ``collapsed_below``: nearly all units are hardly ever moved, and 1/π makes the few times they are
    violent. It is *flat* when the share is above ``flat_above``: the scores tell nothing apart, and sampling is uniform
    at best. Each is warned of when the run enters it, not again before it has clearly left it (by twice the margin),
    and not in the first ``patience`` steps, since every run starts flat. The state is kept in checkpoints.

    Runs whose selection has no scores (MeZO, uniform sampling) have no support; nothing is logged then.

    Example:
        trainer:
          callbacks:
            - class_path: zolit_callbacks.SupportMonitor
              init_args:
                every_n_steps: 10
                collapsed_below: 0.05

    Args:
        every_n_steps: Log, and look, every so many steps.
        collapsed_below: Effective support as a share of the units, or normalized entropy, below which the distribution
            counts as collapsed.
        flat_above: Effective support as a share of the units above which it counts as flat.
        patience: Do not warn in the first so many steps of the run.
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
        """Logs and looks if it is time to."""
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
            health = self._judged(share, entropy)
            if health != self._health:
                self._health = health
                self._warn(report.step, selection, share, entropy)

    def _judged(self, share: float, entropy: float) -> Health:
        """Tells the state that the numbers mean, given the one before them."""
        below = self._collapsed_below * (2.0 if self._health == "collapsed" else 1.0)
        margin = (1.0 - self._flat_above) * (2.0 if self._health == "flat" else 1.0)
        if min(share, entropy) < below:
            return "collapsed"
        return "flat" if share > 1.0 - margin else "healthy"

    def _warn(self, step: int, selection: SelectionReport, share: float, entropy: float) -> None:
        """Says that a state was entered, how it shows, and what can be done."""
        numbers = (
            f"at step {step} the effective support is {selection.effective_support:.1f} of {selection.units} units "
            f"({share:.1%}) and the normalized entropy {entropy:.3f}"
        )
        if self._health == "collapsed":
            rank_zero_warn(
                f"The curvature distribution has collapsed: {numbers}. Most of the model is hardly moved any more, and "
                "by large corrections 1/π when it is. Raise `exploration` or `budget_min`, lower `smoothing`, or "
                "choose another score than `literal`, which feeds on its own choices."
            )
        elif self._health == "flat":
            rank_zero_warn(
                f"The curvature distribution is flat: {numbers}. The scores tell the blocks apart no better than "
                "uniform sampling would. Raise `smoothing` if the scores lag behind, do not divide them by the blocks' "
                "sizes, or save their bookkeeping and run MeZO."
            )

    @override
    def state_dict(self) -> dict[str, Any]:
        """Returns the state that was last warned of."""
        return {"health": self._health}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a state that ``state_dict`` returned."""
        self._health = state_dict["health"]
