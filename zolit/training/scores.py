"""The metrics of validation and test, over all batches and all processes."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassF1Score

from zolit.tasks.classification import Classification
from zolit.tasks.metrics import MeanScore, Perplexity, TokenLoss
from zolit.tasks.task import Task
from zolit.tasks.text import Text
from zolit.training.objective import BatchScores


class Scores(nn.ModuleDict):
    """Collects and logs the metrics of a task and its loss.

    The loss of questions is the mean over examples. That of texts is the mean over all tokens of the data.

    Args:
        task: The task.
    """

    def __init__(self, task: Task) -> None:
        made: dict[str, nn.Module] = {}
        for stage in ("val", "test"):
            made |= {f"{stage}_{name}": MeanScore() for name in task.metrics}
            if "macro_f1" in task.metrics and isinstance(task, Classification):
                made[f"{stage}_macro_f1"] = MulticlassF1Score(len(task.label_words), average="macro")
            if isinstance(task, Text):
                made |= {f"{stage}_perplexity": Perplexity(), f"{stage}_loss": TokenLoss()}
        super().__init__(made)

    def log(self, module: pl.LightningModule, stage: str, found: BatchScores) -> None:
        """Adds a batch, and logs all metrics. Called for each batch of a validation or test.

        Args:
            module: The module that logs.
            stage: val or test.
            found: The losses and scores of the batch.
        """
        size = len(found.losses)
        own = {key.removeprefix(f"{stage}_"): metric for key, metric in self.items() if key.startswith(f"{stage}_")}
        for name, metric in own.items():
            if isinstance(metric, MulticlassF1Score):
                assert found.chosen is not None
                assert found.correct is not None
                metric.update(found.chosen, found.correct)
            elif isinstance(metric, TokenLoss):
                assert found.tokens is not None
                metric.update(found.losses, found.tokens)
            elif isinstance(metric, MeanScore):
                metric.update(found.scores[name])
            assert isinstance(metric, Metric)
            module.log(f"{stage}/{name}", metric, prog_bar=True, batch_size=size)
        if "loss" not in own:
            module.log(f"{stage}/loss", found.losses.mean(), prog_bar=True, batch_size=size, sync_dist=True)
