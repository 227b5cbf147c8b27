"""Writes a callback's results: scalars to each logger, figures to TensorBoard, all at the same step.

``LightningModule.log`` writes only at steps that match both the callback's interval and ``Trainer.log_every_n_steps``.
Callbacks therefore pass their scalars to the loggers directly, as Lightning's own monitors do. They use the step that
Lightning uses for the module's scalars: the 0-based index, which is ``global_step - 1`` after the step.
"""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter


def is_due(trainer: pl.Trainer, every_n_steps: int) -> bool:
    """Returns whether the number of finished steps is a multiple of ``every_n_steps``. Called after a step."""
    return trainer.global_step % every_n_steps == 0


def last_step(trainer: pl.Trainer) -> int:
    """Returns the 0-based index of the last finished step, at which its results are logged."""
    return trainer.global_step - 1


def log_scalars(trainer: pl.Trainer, scalars: Mapping[str, float]) -> None:
    """Writes scalars to all loggers, at the last finished step. Only rank zero writes."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(scalars), step=last_step(trainer))


def tensorboard_writers(trainer: pl.Trainer) -> list[SummaryWriter]:
    """Returns the TensorBoard writers of the run, for figures, histograms and texts. Called on rank zero alone."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
