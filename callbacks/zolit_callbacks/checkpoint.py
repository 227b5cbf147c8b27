"""Saves two checkpoints of a run: the one with the best validation score, and the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
from jsonargparse.typing import PositiveInt
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override


def deciding_metric(trainer: pl.Trainer) -> str:
    """Returns the name of the score that decides which weights are best: the first metric of the task."""
    return str(cast("Any", trainer).datamodule.task.metrics[0])


class StepCheckpoint(ModelCheckpoint):
    """Saves ``best.ckpt`` and ``last.ckpt``, at intervals that count steps.

    Both are written after each validation. The last one is also written every ``last_every_n_steps`` steps and at the
    end of training, so that it holds the final weights. A killed run loses the steps since then; ``--ckpt_path
    .../last.ckpt`` continues it. ModelCheckpoint's own saving by steps is not used: it replaces the saving after
    validations, and ranks checkpoints by outdated metrics.

    Args:
        dirpath: Folder of the checkpoints; null is ``checkpoints`` in the run's folder.
        monitor: Logged metric that decides which checkpoint is best; null is the task's first metric.
        mode: Whether the best value is the largest (max) or the smallest (min).
        last_every_n_steps: Interval of saving the last checkpoint, in steps; null saves it only after validations.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "max",
        last_every_n_steps: PositiveInt | None = None,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._last_every_n_steps = last_every_n_steps
        self._saved_at = 0

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Sets the metric to monitor; see ``ModelCheckpoint.setup``."""
        # Set before a checkpoint is restored, because the callback's state in it is stored under the metric's name.
        self.monitor = self.monitor or f"val/{deciding_metric(trainer)}"
        super().setup(trainer, pl_module, stage)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Writes the last checkpoint if it is due; see ``Callback.on_train_batch_end``."""
        if self._last_every_n_steps and trainer.global_step % self._last_every_n_steps == 0:
            self._write_last(trainer)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes both checkpoints after a validation of a fit; see ``Callback.on_validation_end``."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._write_last(trainer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the last checkpoint unless the final weights are saved already; see ``Callback.on_train_end``."""
        if self._saved_at != trainer.global_step:
            self._write_last(trainer)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best score, but not the folder; see ``Callback.load_state_dict``."""
        # A resumed run has its own folder, but keeps the best score so far.
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})

    def _write_last(self, trainer: pl.Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning sets it without declaring it
            return
        assert self.dirpath is not None
        self.last_model_path = str(Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}")
        trainer.save_checkpoint(self.last_model_path, weights_only=False)
        self._saved_at = trainer.global_step
