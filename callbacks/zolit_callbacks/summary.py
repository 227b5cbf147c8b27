"""Summarizes a fit: a table in the terminal, and ``summary.json``."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from rich.console import Console
from rich.table import Table
from typing_extensions import override

from zolit.files import write_json
from zolit.optim.report import StepReport
from zolit_callbacks.arithmetic import StepArithmetic
from zolit_callbacks.checkpoint import StepCheckpoint, deciding_metric, is_trial, lower_is_better
from zolit_callbacks.memory import MemoryProfiler, gauge_for

_WARM_UP = 3
_MEASUREMENTS = 20


class RunSummary(pl.Callback):
    """Reports a fit's score before and after training, its costs, and the paths of its files.

    "Before" is the validation before the first step (``num_sanity_val_steps: -1``; checkpoints keep it). "After" is the
    validation of the final weights. On about twenty steps spread over the run, the time of a step is compared with two
    plain forwards of the same batch, run just before the step; the first three steps are excluded. The summary has the
    median ratio.

    On steps 2, 4, 8, 16 and so on, ``StepArithmetic`` counts the floating point operations of the step and of one plain
    forward of the same batch. The steps do not depend on the length of the run, so that a resumed run counts the same
    ones. All these forwards are not counted in ``forward_passes``.

    The caller of the fit calls ``write`` after the final weights are validated; the command line does so.
    """

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[str, float] = {}
        self._after: dict[str, float] = {}
        self._validated_at = -1
        self._totals = {"forward_passes": 0, "backward_passes": 0, "skipped_steps": 0}
        self._ratios: list[float] = []
        self._step_seconds: list[float] = []
        self._arithmetic = StepArithmetic()
        self._forwards_seconds = 0.0
        self._started = 0.0
        self._fit_started = 0.0

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the time of the fit, and the peak of memory unless a MemoryProfiler measures it."""
        self._fit_started = time.perf_counter()
        if not any(isinstance(callback, MemoryProfiler) for callback in _callbacks(trainer)):
            self._gauge = gauge_for(trainer.strategy.root_device)
            self._gauge.reset()

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps the scores of the validation: before the first step, or after the latest one."""
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if trainer.sanity_checking:
            self._before = self._before or found
        else:
            self._after, self._validated_at = found, self._steps_of(trainer)

    @staticmethod
    def _steps_of(trainer: pl.Trainer) -> int:
        return trainer.fit_loop.epoch_loop.global_step

    def is_behind(self, trainer: pl.Trainer) -> bool:
        """Returns whether there is validation data, and a step was made since the last validation."""
        has_data = trainer.limit_val_batches != 0 and cast("Any", trainer).datamodule.has("validation")
        return has_data and self._validated_at != self._steps_of(trainer)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Times two plain forwards, or counts the arithmetic of one, if this step is one of those to compare."""
        self._started = 0.0
        step = trainer.global_step
        every = max(trainer.max_steps // _MEASUREMENTS, 1)

        def forward() -> None:
            with trainer.precision_plugin.train_step_context():
                cast("Any", pl_module).objective(batch)

        if step > 1 and step.bit_count() == 1:
            self._arithmetic.begin(trainer.optimizers[0], forward)
        elif len(self._ratios) < _MEASUREMENTS and step >= _WARM_UP and step % every == 1 % every:
            start = self._now(pl_module.device)
            forward()
            forward()
            self._started = self._now(pl_module.device)
            self._forwards_seconds = self._started - start

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the report of the step, and what was measured of it."""
        if self._started:
            seconds = self._now(pl_module.device) - self._started
            self._step_seconds.append(seconds)
            self._ratios.append(seconds / self._forwards_seconds)
        report: StepReport = cast("dict[str, Any]", outputs)["zo"]
        self._arithmetic.end(report)
        self._totals = {
            "forward_passes": report.total_forward_passes,
            "backward_passes": report.total_backward_passes,
            "skipped_steps": report.skipped_steps,
        }

    @staticmethod
    def _now(device: torch.device) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stops counting arithmetic."""
        self._arithmetic.abandon()

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops the time of the fit."""
        self._seconds = time.perf_counter() - self._fit_started

    def figures(self, trainer: pl.Trainer) -> dict[str, Any]:
        """Returns the content of ``summary.json``; unmeasured values are None."""
        checkpoint = next((c for c in _callbacks(trainer) if isinstance(c, StepCheckpoint)), None)
        profiler = next((c for c in _callbacks(trainer) if isinstance(c, MemoryProfiler)), None)
        peak = self._gauge.peaks()["peak"] if profiler is None else profiler.peak_memory_bytes
        metric = deciding_metric(trainer)
        watched = checkpoint is not None and checkpoint.monitor == f"val/{metric}"
        best = checkpoint.best_model_score if checkpoint and watched else None
        return {
            "method": type(trainer.optimizers[0]).__name__ if trainer.optimizers else None,
            "metric": metric,
            f"{metric}_before": self._before.get(f"val/{metric}"),
            f"{metric}_after": self._after.get(f"val/{metric}"),
            "loss_before": self._before.get("val/loss"),
            "loss_after": self._after.get("val/loss"),
            "steps": self._steps_of(trainer),
            **self._totals,
            "step_seconds": statistics.median(self._step_seconds) if self._step_seconds else None,
            "step_over_two_forwards": statistics.median(self._ratios) if self._ratios else None,
            "step_flops_over_forward": self._arithmetic.step_over_forward,
            "fit_seconds": self._seconds,
            "peak_memory_bytes": peak,
            "step_memory_over_inference": None if profiler is None else profiler.step_over_inference,
            "checkpoint": (checkpoint and checkpoint.last_model_path) or None,
            "best_checkpoint": (checkpoint and checkpoint.best_model_path) or None,
            f"best_{metric}": None if best is None else float(best),
            "logs": str(trainer.log_dir or trainer.default_root_dir),
        }

    def write(self, trainer: pl.Trainer) -> dict[str, Any]:
        """Prints the summary, and writes ``summary.json`` into the run's folder, on rank zero.

        Returns:
            The content of ``summary.json``.
        """
        figures = self.figures(trainer)  # on each rank: the path of the logs is broadcast to all
        if trainer.is_global_zero and not is_trial(trainer):
            folder = Path(figures["logs"])
            write_json(folder / "summary.json", figures)
            Console().print(_table(figures, folder, not lower_is_better(trainer)))
        return figures

    @override
    def state_dict(self) -> dict[str, Any]:
        """Returns the scores before the first step and after the last validation, and what was counted so far."""
        return {
            "before": self._before,
            "after": self._after,
            "validated_at": self._validated_at,
            "arithmetic": self._arithmetic.state_dict(),
            **self._totals,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a state that ``state_dict`` returned."""
        self._before = dict(state_dict["before"])
        self._after = dict(state_dict["after"])
        self._validated_at = state_dict["validated_at"]
        self._arithmetic.load_state_dict(state_dict["arithmetic"])
        self._totals = {name: state_dict[name] for name in self._totals}


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    """Returns the trainer's callbacks, an attribute that its class does not declare."""
    return cast("list[pl.Callback]", cast("Any", trainer).callbacks)


def _table(figures: dict[str, Any], folder: Path, has_shares: bool) -> Table:
    """Returns the table for the terminal.

    Args:
        figures: The content of ``summary.json``.
        folder: The folder of the run.
        has_shares: Whether the scores of the task are shares from 0 to 1.
    """

    def score(name: str) -> str:
        value = figures[name]
        if value is None:
            return "not measured"
        return f"{100 * value:.1f} %" if has_shares else f"{value:#.4g}"

    def ratio(name: str, of: str) -> str:
        return "not measured" if figures[name] is None else f"{figures[name]:.2f} x {of}"

    table = Table(title=f"{figures['method']}: what happened", show_header=False, title_justify="left")
    metric = figures["metric"]
    table.add_row(f"{metric} before", score(f"{metric}_before"))
    table.add_row(f"{metric} after", score(f"{metric}_after"))
    backward = f"{figures['backward_passes']:,} backward" if figures["backward_passes"] else "none of them backward"
    table.add_row("forward passes", f"{figures['forward_passes']:,} in {figures['steps']:,} steps, {backward}")
    table.add_row("time of a step", ratio("step_over_two_forwards", "two plain forwards"))
    table.add_row("arithmetic of a step", ratio("step_flops_over_forward", "one plain forward"))
    memory = f"{figures['peak_memory_bytes'] / 2**20:,.0f} MiB at the peak"
    if figures["step_memory_over_inference"] is not None:
        memory += f"; a step takes {ratio('step_memory_over_inference', 'inference')}"
    table.add_row("memory", memory)
    table.add_row("checkpoint", str(figures["checkpoint"] or "none"))
    table.add_row("TensorBoard", f"tensorboard --logdir {folder}")
    table.add_row("this summary", str(folder / "summary.json"))
    return table
