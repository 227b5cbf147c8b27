"""Where a callback's findings go: scalars to every logger, pictures to TensorBoard, all at one place on the x axis.

``LightningModule.log`` writes only where the callback's interval and ``Trainer.log_every_n_steps`` meet, so callbacks
hand their scalars to the loggers themselves, as Lightning's own monitors do, and at the x that it gives to the module's
scalars: the 0-based index of the step, which is ``global_step - 1`` once the step is done.
"""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter


def is_due(trainer: pl.Trainer, every_n_steps: int) -> bool:
    """Tells, after a step, whether it is one of every ``every_n_steps``, counted as Lightning counts them."""
    return trainer.global_step % every_n_steps == 0


def last_step(trainer: pl.Trainer) -> int:
    """Gives the 0-based index of the last finished step: the x of everything that is logged about it."""
    return trainer.global_step - 1


def log_scalars(trainer: pl.Trainer, scalars: Mapping[str, float]) -> None:
    """Writes scalars to all loggers at the last finished step; ranks other than zero write nothing."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(scalars), step=last_step(trainer))


def tensorboards(trainer: pl.Trainer) -> list[SummaryWriter]:
    """Lists the TensorBoard writers of the run, for what is not a scalar. To be called on rank zero."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
