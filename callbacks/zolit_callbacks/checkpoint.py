"""Saves two checkpoints of a run: the one with the best validation score, and the last."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override

from zolit.errors import Stopped, require


def deciding_metric(trainer: pl.Trainer) -> str:
    """Returns the name of the score that decides which weights are best: the first metric of the task."""
    return str(cast("Any", trainer).datamodule.task.metrics[0])


def lower_is_better(trainer: pl.Trainer) -> bool:
    """Returns whether the scores of the task are better when they are smaller, as a perplexity is."""
    return bool(cast("Any", trainer).datamodule.task.lower_is_better)


def _direction(monitor: str, trainer: pl.Trainer) -> str | None:
    """Returns the mode for a metric by its name; None if it is not known."""
    if any(word in monitor for word in ("loss", "perplexity", "error")):
        return "min"
    if monitor.rpartition("/")[2] in cast("Any", trainer).datamodule.task.metrics:
        return "min" if lower_is_better(trainer) else "max"
    return None


class StepCheckpoint(ModelCheckpoint):
    """Saves ``best.ckpt`` and ``last.ckpt``, at intervals that count steps.

    Both are written after each validation. The best one is also written before the first step: until a validation is
    better, the best weights are those at the start. The last one is also written every ``last_every_n_steps`` steps, at
    the end of training, and when SIGINT or SIGTERM ends the run. A killed run loses the steps since then; ``--ckpt_path
    last`` continues it. ModelCheckpoint's own saving by steps is not used: it replaces the saving after
    validations, and ranks checkpoints by outdated metrics.

    Args:
        dirpath: Folder of the checkpoints; null is ``checkpoints`` in the run's folder.
        monitor: Logged metric that decides which checkpoint is best; null is the task's first metric.
        mode: Whether the best value is the largest (max) or the smallest (min); null is min for losses, perplexities
            and errors, and for scores of the task what the task says.
        last_every_n_steps: Interval of saving the last checkpoint, in steps; null saves it only after validations.

    Attributes:
        last_save: Path of the last checkpoint that this run wrote, and its number of steps; None if it wrote none.
    """

    last_save: tuple[Path, int] | None = None

    def __init__(
        self,
        dirpath: str | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        last_every_n_steps: PositiveInt | None = None,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode=mode or "max",
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._finds_mode = mode is None
        self._last_every_n_steps = last_every_n_steps
        self._score_at_start: torch.Tensor | None = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Sets the metric to monitor; see ``ModelCheckpoint.setup``."""
        # Set before a checkpoint is restored, because the callback's state in it is stored under metric and mode.
        self.monitor = self.monitor or f"val/{deciding_metric(trainer)}"
        if self._finds_mode:
            mode = _direction(self.monitor, trainer)
            require(
                mode is not None or stage != "fit",
                f"checkpoint.mode: it is not known whether {self.monitor} is better when it is larger or smaller; set "
                "max or min",
            )
            self.mode = mode or self.mode
            self.kth_value = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
        # ``on_fit_start`` refuses a folder of another run.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        super().setup(trainer, pl_module, stage)

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses a folder that has the checkpoints of another run; see ``Callback.on_fit_start``."""
        assert self.dirpath is not None
        folder, resumed = Path(self.dirpath), Path(str(trainer.ckpt_path or ""))
        is_own = resumed.parent.resolve() == folder.resolve() or resumed.name.startswith("hpc_ckpt_")
        is_taken = not is_own and any(folder.glob("*.ckpt"))
        require(
            not trainer.strategy.broadcast(is_taken),
            f"checkpoint.dirpath: {folder} has the checkpoints of another run; name another folder, or go on with "
            f"--ckpt_path {folder / 'last.ckpt'}",
        )

    @override
    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps the score at the start if it is that of all validation data; see ``Callback.on_sanity_check_end``."""
        if trainer.num_sanity_val_steps == float("inf"):
            self._score_at_start = trainer.callback_metrics.get(str(self.monitor))

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the best checkpoint with the weights at the start; see ``Callback.on_train_start``."""
        super().on_train_start(trainer, pl_module)
        is_resumed = bool(self.best_model_path) or trainer.global_step > 0
        if is_resumed or is_trial(trainer) or not sum(trainer.num_val_batches):
            return
        unknown = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
        score = unknown if self._score_at_start is None else self._score_at_start
        self._save_topk_checkpoint(trainer, {**self._monitor_candidates(trainer), str(self.monitor): score})

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
        self._write_last_once(trainer)

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Writes the last checkpoint if a signal ends the run after a step; see ``Callback.on_exception``."""
        if isinstance(exception, Stopped) and exception.resumable and trainer.global_step > 0:
            self._write_last_once(trainer)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best score, but not the folder; see ``Callback.load_state_dict``."""
        # A resumed run has its own folder, but keeps the best score so far.
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})

    @override
    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        self._flush_loggers(trainer)
        super()._save_checkpoint(trainer, filepath)

    @staticmethod
    def _flush_loggers(trainer: pl.Trainer) -> None:
        """Writes what was logged so far, since a run that resumes from the checkpoint does not log it again."""
        for logger in trainer.loggers:
            logger.save()

    def _write_last_once(self, trainer: pl.Trainer) -> None:
        if self.last_save is None or self.last_save[1] != trainer.global_step:
            self._write_last(trainer)

    def _write_last(self, trainer: pl.Trainer) -> None:
        if is_trial(trainer):
            return
        assert self.dirpath is not None
        self._flush_loggers(trainer)
        self.last_model_path = str(Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}")
        trainer.save_checkpoint(self.last_model_path, weights_only=False)
        self.last_save = Path(self.last_model_path), trainer.global_step


def is_trial(trainer: pl.Trainer) -> bool:
    """Returns whether a run tries a few batches and writes nothing (``fast_dev_run``)."""
    return bool(cast("Any", trainer).fast_dev_run)  # Lightning sets it without declaring it
