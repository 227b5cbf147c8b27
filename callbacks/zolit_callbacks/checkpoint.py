"""Two checkpoints of a run: the best that validation has seen, and the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
from jsonargparse.typing import PositiveInt
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override


def deciding_metric(trainer: pl.Trainer) -> str:
    """Returns the name of the score that decides which weights are best: the first of the data module's task."""
    return str(cast("Any", trainer).datamodule.task.metrics[0])


class StepCheckpoint(ModelCheckpoint):
    """Keeps ``best.ckpt`` and ``last.ckpt``, counted in steps as zeroth-order runs are.

    Both are written after each validation; the last one also every so many steps, and when training ends, so that it
    holds the final weights. A killed run loses the steps since then: go on with ``--ckpt_path .../last.ckpt``.
    ModelCheckpoint's own saving by steps replaces the one after validations, and ranks what it saves by old metrics.

    Args:
        dirpath: Folder of the checkpoints; null is ``checkpoints`` in the run's folder.
        monitor: Logged metric that the best one is best at; null is the first of the task's own.
        mode: Whether more of it is better (max) or less (min).
        last_every_n_steps: Write the last checkpoint every so many steps too; null only after validations.
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
        # Before a checkpoint is restored: what it has of this callback goes by the metric's name.
        self.monitor = self.monitor or f"val/{deciding_metric(trainer)}"
        super().setup(trainer, pl_module, stage)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if self._last_every_n_steps and trainer.global_step % self._last_every_n_steps == 0:
            self._write_last(trainer)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._write_last(trainer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._saved_at != trainer.global_step:
            self._write_last(trainer)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A resumed run has a folder of its own, and the best so far is still the best.
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})

    def _write_last(self, trainer: pl.Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning sets it without declaring it
            return
        assert self.dirpath is not None
        self.last_model_path = str(Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}")
        trainer.save_checkpoint(self.last_model_path, weights_only=False)
        self._saved_at = trainer.global_step
