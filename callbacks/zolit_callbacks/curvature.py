"""Shows which parts of the network curvature-guided sampling prefers, and how this changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import Tensor
from typing_extensions import override

from zolit.optim.report import SelectionReport, StepReport
from zolit_callbacks.boards import is_due, last_step, log_scalars, tensorboard_writers
from zolit_callbacks.heat_map import draw_heat_map

_SERIES_PER_TOP = 4  # leaders change often at first; at most this many times `top` blocks get a series


class CurvatureTracker(pl.Callback):
    """Shows the smoothed curvature scores and the inclusion probabilities π of the blocks over time.

    Every ``every_n_steps`` steps:

    - Scalars ``curvature/score/<block>`` and ``curvature/probability/<block>`` of the ``top`` blocks by score. A block
      that has once been among the top keeps its series. At most ``4 * top`` blocks get a series.
    - Histograms ``curvature/log10_scores`` and ``curvature/probabilities``, with one count a block. Scores span orders
      of magnitude; scores that are not positive are left out. The histograms show whether the scores are spread
      widely, are almost equal, or have a few outliers.

    Every ``figure_every_n_steps`` steps and at the end of the fit:

    - Figure ``curvature/heat_map``: π of all blocks over the steps. If there are more blocks than ``heat_map_blocks``,
      it shows layers and kinds of tensor, beside a map of layers x kinds with the present π of each block. It shows
      which parts of the network the sampling prefers, and since when.
    - Text ``curvature/leaders``: the present ``top`` blocks by score, with their share of all scores, π and size.

    Scalars go to each logger, the rest to TensorBoard. If selection is per parameter, a block's score is the sum and
    its π the mean over its parameters. With a selection that has no scores (MeZO), the callback warns once and does
    nothing. Series and heat map are kept in checkpoints, so that a resumed run continues them.

    Example:
        trainer:
          callbacks:
            - class_path: zolit_callbacks.CurvatureTracker
              init_args:
                every_n_steps: 50
                top: 8

    Args:
        every_n_steps: Logging interval of scalars, histograms and the heat map's history, in steps.
        top: Number of leading blocks that get scalars and a row in the table.
        figure_every_n_steps: Interval of figures and tables, in steps, rounded up to a multiple of ``every_n_steps``. A
            figure with its table takes half a second and 100 kB.
        heat_map_blocks: Largest number of rows in the heat map.
        heat_map_columns: Largest number of columns in the heat map's history. When the history is full, every second
            column is dropped, and from then on columns are recorded half as often.
    """

    def __init__(
        self,
        every_n_steps: PositiveInt = 50,
        top: PositiveInt = 8,
        figure_every_n_steps: PositiveInt = 500,
        heat_map_blocks: PositiveInt = 40,
        heat_map_columns: PositiveInt = 200,
    ) -> None:
        super().__init__()
        self._every_n_steps = every_n_steps
        self._top = top
        self._figure_every_n_steps = -(-figure_every_n_steps // every_n_steps) * every_n_steps
        self._heat_map_blocks = heat_map_blocks
        self._heat_map_columns = heat_map_columns
        self._series: list[str] = []  # names of the blocks with scalars, oldest first
        self._steps: list[int] = []
        self._columns: list[Tensor] = []  # π at each of the steps, shape (n,), float32
        self._stride = 1  # one column is recorded for this many log entries
        self._pending_figure: tuple[int, SelectionReport] | None = None  # the last logged step, until a figure shows it
        self._warned = False

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Records and logs the step's scores if the step is due."""
        if not is_due(trainer, self._every_n_steps) or not trainer.is_global_zero:
            return
        assert isinstance(outputs, Mapping)
        report: StepReport = outputs["zo"]
        selection = report.selection
        if selection.scores is None:
            if not self._warned:
                rank_zero_warn(
                    "CurvatureTracker logs nothing, because this selection has no curvature scores. Remove the "
                    "callback, or use a method that samples by curvature (CurvZO)."
                )
                self._warned = True
            return
        step = last_step(trainer)
        self._record(step, selection.probabilities)
        self._log_leaders(trainer, selection, selection.scores)
        positive = selection.scores[selection.scores > 0]
        for board in tensorboard_writers(trainer):
            if len(positive):
                board.add_histogram("curvature/log10_scores", positive.log10(), step)
            board.add_histogram("curvature/probabilities", selection.probabilities, step)
        self._pending_figure = step, selection
        if is_due(trainer, self._figure_every_n_steps):
            self._write_figure(trainer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws what has been recorded since the last figure."""
        self._write_figure(trainer)

    def _record(self, step: int, probabilities: Tensor) -> None:
        """Appends a column to the heat map's history, and halves a full history."""
        if (step + 1) % (self._stride * self._every_n_steps):
            return
        self._steps.append(step)
        self._columns.append(probabilities.to("cpu", torch.float32))
        if len(self._steps) > self._heat_map_columns:
            self._stride *= 2
            # Keep the last column of each pair: a doubled stride would have recorded these steps.
            self._steps, self._columns = self._steps[1::2], self._columns[1::2]

    def _log_leaders(self, trainer: pl.Trainer, selection: SelectionReport, scores: Tensor) -> None:
        """Writes the scalars of all blocks that are or were among the top."""
        leaders = [selection.names[index] for index in self._top_indices(scores)]
        new_names = [name for name in leaders if name not in self._series]
        self._series += new_names[: self._top * _SERIES_PER_TOP - len(self._series)]
        scalars: dict[str, float] = {}
        for name in self._series:
            index = selection.names.index(name)
            scalars[f"curvature/score/{name}"] = float(scores[index])
            scalars[f"curvature/probability/{name}"] = float(selection.probabilities[index])
        log_scalars(trainer, scalars)

    def _top_indices(self, scores: Tensor) -> list[int]:
        """Returns the indices of the top blocks, highest score first."""
        leading: list[int] = scores.argsort(descending=True, stable=True)[: self._top].tolist()
        return leading

    def _write_figure(self, trainer: pl.Trainer) -> None:
        """Writes the heat map and the leaders' table of the last logged step, unless they are written already."""
        boards = tensorboard_writers(trainer) if trainer.is_global_zero else []
        if self._pending_figure is None or not boards:
            return
        step, selection = self._pending_figure
        self._pending_figure = None
        steps, columns = self._steps, self._columns
        if not steps or steps[-1] != step:
            steps, columns = [*steps, step], [*columns, selection.probabilities.to("cpu", torch.float32)]
        figure = draw_heat_map(selection.names, steps, torch.stack(columns), max_rows=self._heat_map_blocks)
        canvas: Any = FigureCanvasAgg(figure)  # SummaryWriter.add_figure would import pyplot, which needs a display
        canvas.draw()
        for board in boards:
            board.add_image("curvature/heat_map", np.asarray(canvas.buffer_rgba())[..., :3], step, dataformats="HWC")
            board.add_text("curvature/leaders", self._leaders_table(selection), step)

    def _leaders_table(self, selection: SelectionReport) -> str:
        """Returns the leaders as a Markdown table."""
        assert selection.scores is not None
        total = float(selection.scores.clamp(min=0.0).sum())
        lines = ["| | block | score | share of all scores | π | parameters |", "|--:|:--|--:|--:|--:|--:|"]
        for rank, index in enumerate(self._top_indices(selection.scores), start=1):
            score = float(selection.scores[index])
            lines.append(
                f"| {rank} | `{selection.names[index]}` | {score:.3e} | {score / total if total else 0.0:.1%} "
                f"| {float(selection.probabilities[index]):.3f} | {int(selection.sizes[index]):,} |"
            )
        return "\n".join(lines)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Returns the names of the blocks with series, and the heat map's history."""
        return {
            "series": list(self._series),
            "steps": list(self._steps),
            "columns": torch.stack(self._columns) if self._columns else torch.empty(0),
            "stride": self._stride,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a state that ``state_dict`` returned."""
        self._series = list(state_dict["series"])
        self._steps = list(state_dict["steps"])
        self._columns = list(state_dict["columns"])
        self._stride = state_dict["stride"]
