"""Logs the report of a step."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import LightningModule

from zolit.optim.report import StepReport


def log_report(module: LightningModule, report: StepReport, coefficients: Sequence[float]) -> None:
    """Logs the report of a step: for callbacks to monitor, and to each logger. Called at the end of a training step.

    Lightning would pass the scalars on after the hooks of the step. A checkpoint that one of these hooks saves would
    then come before the scalars of its own step, and a run that ends there would lose them.

    Args:
        module: The module, in its training step.
        report: The report.
        coefficients: The coefficients to log, one for each direction.
    """
    scalars = {
        "zo/forward_passes": float(report.total_forward_passes),
        "zo/learning_rate": report.learning_rate,
        "zo/skipped_steps": float(report.skipped_steps),
        **{f"zo/projected_gradient/{index}": value for index, value in enumerate(coefficients)},
    }
    trainer = module.trainer
    module.log("train/loss", report.loss, prog_bar=True, logger=False)
    module.log_dict(scalars, logger=False)
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set, not declared
    if every and trainer.global_step % every == 0:
        for logger in trainer.loggers:
            logger.log_metrics({"train/loss": report.loss, **scalars}, step=trainer.global_step - 1)
