"""Runs without an optimizer: a module that reports given scores, and readers of what callbacks wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from zolit.optim.report import SelectionReport, StepReport

NAMES = ("embed.weight", "layers.0.up.weight", "layers.0.down.weight", "norm.weight")
SIZES = (4000, 600, 600, 10)


def make_selection(scores: Sequence[float] | None) -> SelectionReport:
    """Returns a report in which the first two of four blocks are chosen; π is written by hand."""
    tensor = None if scores is None else torch.tensor(scores, dtype=torch.float64)
    roots = None if tensor is None else tensor.sqrt()
    shares = None if roots is None else roots / roots.sum()
    return SelectionReport(
        names=NAMES,
        sizes=torch.tensor(SIZES),
        probabilities=torch.tensor([1.0, 0.5, 0.25, 0.25], dtype=torch.float64),
        chosen=torch.tensor([True, True, False, False]),
        scores=tensor,
        units=len(NAMES),
        budget=2.0,
        clipped=0.25,
        perturbed_parameters=SIZES[0] + SIZES[1],
        effective_support=None if tensor is None or roots is None else float(roots.sum() ** 2 / tensor.sum()),
        normalized_entropy=None
        if shares is None
        else float(-torch.special.xlogy(shares, shares).sum() / torch.tensor(len(NAMES)).log()),
    )


class ReportingModule(pl.LightningModule):
    """Steps a dummy optimizer and reports the given scores; the scalar train/loss is the step's index.

    Evaluating the loss allocates ``inference_bytes`` for a moment, and a step allocates ``step_bytes``.
    """

    def __init__(
        self,
        scores_at: Callable[[int], Sequence[float] | None],
        inference_bytes: int = 0,
        step_bytes: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(10))
        self.register_buffer("buffer", torch.zeros(5, dtype=torch.int64))
        self.scores_at = scores_at
        self.inference_bytes = inference_bytes
        self.step_bytes = step_bytes
        self.zo = SimpleNamespace(scratch_bytes=lambda: 1024)
        self.autocast: list[bool] = []

    def objective(self, batch: int) -> torch.Tensor:
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        held = torch.ones(self.inference_bytes + 1, dtype=torch.uint8)
        return held[:1].float()

    def training_step(self, batch: int, batch_idx: int) -> dict[str, Any]:
        step = self.trainer.global_step
        torch.ones(self.step_bytes, dtype=torch.uint8)
        self.optimizers().step()
        self.log("train/loss", float(step))
        return {
            "loss": torch.tensor(float(step)),
            "zo": StepReport(
                step=step,
                loss=float(step),
                losses=(float(step),) * 2,
                coefficients=(0.0,),
                forward_passes=2,
                total_forward_passes=2 * (step + 1),
                skipped=False,
                skipped_steps=0,
                learning_rate=0.0,
                selection=make_selection(self.scores_at(step)),
            ),
        }

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class ValidatingModule(ReportingModule):
    """A ``ReportingModule`` with a validation, which allocates ``validation_bytes`` for a moment."""

    validation_bytes = 0

    def validation_step(self, batch: int, batch_idx: int) -> None:
        torch.ones(self.validation_bytes, dtype=torch.uint8)
        self.log("val/loss", 0.0, batch_size=1)


class Runs:
    """Fits in a folder and reads the logs."""

    module = ReportingModule
    validating_module = ValidatingModule

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logger = TensorBoardLogger(folder, name="boards", version="")

    def fit(
        self,
        callback: pl.Callback,
        module: ReportingModule,
        steps: int,
        *,
        ckpt_path: Path | None = None,
        val_batches: range | None = None,
        **options: Any,
    ) -> pl.Trainer:
        """Trains with ten batches an epoch until ``steps`` steps are done."""
        trainer = pl.Trainer(
            **{
                "accelerator": "cpu",
                "max_steps": steps,
                "log_every_n_steps": 1,
                "callbacks": [callback],
                "logger": self.logger,
                "default_root_dir": self.folder,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                **options,
            }
        )
        trainer.fit(module, range(10), val_batches, ckpt_path=ckpt_path)
        return trainer

    def resume(
        self, make: Callable[[], pl.Callback], module: ReportingModule, stop: int, steps: int, **options: Any
    ) -> pl.Callback:
        """Fits to ``stop``, a multiple of ten, saves a checkpoint, and resumes from it with a new callback."""
        checkpoint = self.folder / "last.ckpt"
        self.fit(make(), module, stop, **options).save_checkpoint(checkpoint)
        torch.load(checkpoint, weights_only=True)
        resumed = make()
        self.fit(resumed, module, steps, ckpt_path=checkpoint, **options)
        return resumed

    def boards(self) -> EventAccumulator:
        """Reads all events of the TensorBoard files."""
        events = EventAccumulator(
            str(self.folder / "boards"), size_guidance=dict.fromkeys(("scalars", "images", "histograms", "tensors"), 0)
        )
        return events.Reload()

    def scalars(self, tag: str) -> dict[int, float]:
        """Reads one series: value by step."""
        return {event.step: event.value for event in self.boards().Scalars(tag)}
