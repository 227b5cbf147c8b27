"""Which parts of the network curvature-guided sampling believes in, and how this changes."""

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

from zolit.report import SelectionReport, StepReport
from zolit_callbacks.boards import is_due, last_step, log_scalars, tensorboards
from zolit_callbacks.heat_map import draw_heat_map

_SERIES_PER_TOP = 4  # early on, leaders change from one look to the next: at most this many times `top` get a series


class CurvatureTracker(pl.Callback):
    """Shows the smoothed curvature scores and the inclusion probabilities π of the blocks over time.

    Every ``every_n_steps`` steps:

    - Scalars ``curvature/score/<block>`` and ``curvature/probability/<block>`` of the ``top`` blocks by score: how do
      the leaders develop? A block that has once led keeps its series; blocks beyond the first ``4 * top`` get none.
    - Histograms ``curvature/log10_scores`` (scores span orders of magnitude; those that are not positive are left out)
      and ``curvature/probabilities``, one count a block: is there a distribution, a spike, or a few outliers?

    Every ``figure_every_n_steps`` steps and at the end of the fit:

    - Figure ``curvature/heat_map``: π of all blocks over the steps; where there are more blocks than
      ``heat_map_blocks``, of layers and of kinds of tensor, beside a layers x kinds map of every block's present π.
      Which parts of the network does the sampler believe in, and since when?
    - Text ``curvature/leaders``: the ``top`` blocks by score now, with their share of all scores, π and size.

    Scalars go to every logger, the rest to TensorBoard. Where selection is per parameter, a block's score is the sum
    and its π the mean over its parameters. With a selection that tracks no scores (MeZO), the callback warns once and
    does nothing. Series and heat map are kept in checkpoints and continue in a resumed run.

    Example:
        trainer:
          callbacks:
            - class_path: zolit_callbacks.CurvatureTracker
              init_args:
                every_n_steps: 50
                top: 8

    Args:
        every_n_steps: Log scalars and histograms, and record π for the heat map, every so many steps.
        top: How many leading blocks get scalars and are listed in the table.
        figure_every_n_steps: Draw heat map and table every so many steps: half a second and 100 kB each. Rounded up to
            a multiple of ``every_n_steps``.
        heat_map_blocks: The most rows of the heat map.
        heat_map_columns: The most columns that it remembers. When they are full, every other one is dropped, and from
            then on columns are recorded half as often.
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
        self._series: list[str] = []  # names of the blocks that have scalars, in the order in which they got them
        self._steps: list[int] = []
        self._columns: list[Tensor] = []  # π at each of the steps, shape (n,), float32
        self._stride = 1  # every how many looks a column is recorded
        self._undrawn: tuple[int, SelectionReport] | None = None  # the last look, if no figure shows it yet
        self._warned = False

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Records and logs if it is time to."""
        if not is_due(trainer, self._every_n_steps) or not trainer.is_global_zero:
            return
        assert isinstance(outputs, Mapping)
        report: StepReport = outputs["zo"]
        selection = report.selection
        if selection.scores is None:
            if not self._warned:
                rank_zero_warn(
                    "CurvatureTracker has nothing to track: this selection keeps no curvature scores. Remove the "
                    "callback, or choose a method that samples by curvature (CurvZO)."
                )
                self._warned = True
            return
        step = last_step(trainer)
        self._record(step, selection.probabilities)
        self._log_leaders(trainer, selection, selection.scores)
        positive = selection.scores[selection.scores > 0]
        for board in tensorboards(trainer):
            if len(positive):
                board.add_histogram("curvature/log10_scores", positive.log10(), step)
            board.add_histogram("curvature/probabilities", selection.probabilities, step)
        self._undrawn = step, selection
        if is_due(trainer, self._figure_every_n_steps):
            self._draw(trainer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws what has been recorded since the last figure."""
        self._draw(trainer)

    def _record(self, step: int, probabilities: Tensor) -> None:
        """Appends a column to the heat map's history, and halves the history when it is full."""
        if (step + 1) % (self._stride * self._every_n_steps):
            return
        self._steps.append(step)
        self._columns.append(probabilities.to("cpu", torch.float32))
        if len(self._steps) > self._heat_map_columns:
            self._stride *= 2
            # The last column of each pair stays: those are the steps that the doubled stride would have recorded.
            self._steps, self._columns = self._steps[1::2], self._columns[1::2]

    def _log_leaders(self, trainer: pl.Trainer, selection: SelectionReport, scores: Tensor) -> None:
        """Writes the scalars of all blocks that lead or have led."""
        leaders = [selection.names[index] for index in self._leading(scores)]
        newcomers = [name for name in leaders if name not in self._series]
        self._series += newcomers[: self._top * _SERIES_PER_TOP - len(self._series)]
        scalars: dict[str, float] = {}
        for name in self._series:
            index = selection.names.index(name)
            scalars[f"curvature/score/{name}"] = float(scores[index])
            scalars[f"curvature/probability/{name}"] = float(selection.probabilities[index])
        log_scalars(trainer, scalars)

    def _leading(self, scores: Tensor) -> list[int]:
        """Lists the indices of the top blocks, highest score first."""
        leading: list[int] = scores.argsort(descending=True, stable=True)[: self._top].tolist()
        return leading

    def _draw(self, trainer: pl.Trainer) -> None:
        """Writes the heat map and the table of leaders as of the last look, unless they are written already."""
        boards = tensorboards(trainer) if trainer.is_global_zero else []
        if self._undrawn is None or not boards:
            return
        step, selection = self._undrawn
        self._undrawn = None
        steps, columns = self._steps, self._columns
        if not steps or steps[-1] != step:
            steps, columns = [*steps, step], [*columns, selection.probabilities.to("cpu", torch.float32)]
        figure = draw_heat_map(selection.names, steps, torch.stack(columns), max_rows=self._heat_map_blocks)
        canvas: Any = FigureCanvasAgg(figure)  # SummaryWriter.add_figure would import pyplot, which wants a display
        canvas.draw()
        for board in boards:
            board.add_image("curvature/heat_map", np.asarray(canvas.buffer_rgba())[..., :3], step, dataformats="HWC")
            board.add_text("curvature/leaders", self._table(selection), step)

    def _table(self, selection: SelectionReport) -> str:
        """Returns the leaders as a markdown table."""
        assert selection.scores is not None
        total = float(selection.scores.clamp(min=0.0).sum())
        lines = ["| | block | score | share of all scores | π | parameters |", "|--:|:--|--:|--:|--:|--:|"]
        for rank, index in enumerate(self._leading(selection.scores), start=1):
            score = float(selection.scores[index])
            lines.append(
                f"| {rank} | `{selection.names[index]}` | {score:.3e} | {score / total if total else 0.0:.1%} "
                f"| {float(selection.probabilities[index]):.3f} | {int(selection.sizes[index]):,} |"
            )
        return "\n".join(lines)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Returns which blocks have series, and the heat map's history."""
        return {
            "series": list(self._series),
            "steps": list(self._steps),
            "columns": torch.stack(self._columns) if self._columns else torch.empty(0),
            "stride": self._stride,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a state that ``state_dict`` returned."""
        self._series = list(state_dict["series"])
        self._steps = list(state_dict["steps"])
        self._columns = list(state_dict["columns"])
        self._stride = state_dict["stride"]
