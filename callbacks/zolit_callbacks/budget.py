"""Logs how much of the model each step perturbs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from jsonargparse.typing import PositiveInt
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override

from zolit.optim.report import StepReport
from zolit_callbacks.boards import is_due, log_scalars


class BudgetLogger(pl.Callback):
    """Logs how much of the model a step perturbs, and the range of the inclusion probabilities.

    Every ``every_n_steps`` steps it writes these scalars of that step:

    - ``budget/units`` and ``budget/unit_share``: the budget B, which is the expected number of perturbed blocks (or of
      parameters, if selection is per parameter), and its share of those among which the step chooses: for one layer,
      those of this layer. They show whether an adaptive budget still explores or has narrowed down.
    - ``budget/blocks``, ``budget/block_share``, ``budget/parameters``, ``budget/parameter_share``: the blocks and
      parameters that the step perturbed. Block sizes differ by a factor of a thousand, so the two shares can differ
      much.
    - ``budget/probability_min``, ``_median``, ``_max``: the range of the inclusion probabilities π of the blocks that
      the step can perturb. The smallest π bounds the correction 1/π, and so how far one step can move a rarely sampled
      block.
    - ``budget/clipped_share``: share of these units with π = 1, which each step perturbs.

    The callback has no state, so a resumed run continues the series.

    Example:
        trainer:
          callbacks:
            - class_path: zolit_callbacks.BudgetLogger
              init_args:
                every_n_steps: 10

    Args:
        every_n_steps: Logging interval, in steps.
    """

    def __init__(self, every_n_steps: PositiveInt = 10) -> None:
        super().__init__()
        self._every_n_steps = every_n_steps

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Logs the step's budget if the step is due."""
        if not is_due(trainer, self._every_n_steps):
            return
        assert isinstance(outputs, Mapping)
        report: StepReport = outputs["zo"]
        selection = report.selection
        possible = selection.probabilities[selection.probabilities > 0.0]
        if not len(possible):  # a skipped step that did not select
            possible = selection.probabilities
        least, median, most = possible.quantile(possible.new_tensor([0.0, 0.5, 1.0])).tolist()
        blocks = int(selection.chosen.sum())
        log_scalars(
            trainer,
            {
                "budget/units": selection.budget,
                "budget/unit_share": selection.budget / selection.units,
                "budget/blocks": blocks,
                "budget/block_share": blocks / len(selection.names),
                "budget/parameters": selection.perturbed_parameters,
                "budget/parameter_share": selection.perturbed_parameters / int(selection.sizes.sum()),
                "budget/probability_min": least,
                "budget/probability_median": median,
                "budget/probability_max": most,
                "budget/clipped_share": selection.clipped,
            },
        )
