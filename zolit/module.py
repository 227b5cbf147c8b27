"""The LightningModule: a language model, an objective, and a zeroth-order step in manual optimization."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, ReduceLROnPlateau
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau as TorchReduceLROnPlateau
from torchmetrics.classification import MulticlassF1Score
from typing_extensions import override

from zolit.adapters import attach_like
from zolit.errors import require
from zolit.language_model import LanguageModel
from zolit.methods import MeZO
from zolit.objectives import Kind, Objective
from zolit.optimizer import ZerothOrder
from zolit.pretrained import check_model_path, load_language_model, load_tokenizer
from zolit.signals import deferred_signals
from zolit.split import SplitRanks, SplitStrategy
from zolit.strategies import ProcessRanks, ReplicatedStrategy
from zolit.tasks import AnswerBatch, Batch, Classification, PromptedData, Task, micro_batches
from zolit.tasks.metrics import MeanScore
from zolit.tuning import Full, Tuning


class ZerothOrderModule(LightningModule):
    """Tunes a language model to put the right answer after a prompt, with forward passes alone.

    Every training step is one step of the optimizer, which calls the objective several times on the same batch;
    Lightning counts it as one. ``training_step`` returns ``{"loss": ..., "zo": StepReport}``, and callbacks read the
    report from there. A third party's ``on_before_optimizer_step`` is called by Lightning after every forward, while
    weights are perturbed: read the weights elsewhere.

    Args:
        name_or_path: Folder or hub id of a causal or masked language model.
        optimizer: The method, e.g. MeZO or CurvZO, with its options under ``init_args``; `zolit methods` lists them.
            null is MeZO.
        tuning: Which weights are tuned: zolit.tuning.Full (all, or by a pattern), LoRA or Prefix; null is all.
        lr_scheduler: A scheduler of torch.optim.lr_scheduler, stepped after every training step; of Lightning,
            lightning.pytorch.cli.ReduceLROnPlateau, stepped after every validation; null keeps the rate constant.
        objective: task is the cross-entropy over the answers' likelihoods or, where the task says so, the likelihood
            of the right answer, both as in MeZO; lm is the latter for every task; metric is one minus what the answer
            scores, which has no gradient: accuracy, or F1 of what the model writes.
        micro_batch_size: Evaluate a batch in pieces of so many examples, which takes less memory and gives the same
            step to rounding; null evaluates it whole.
        attn_implementation: Attention of transformers, e.g. sdpa or eager; null lets transformers choose.
        trust_remote_code: Run code that comes with the model.

    Attributes:
        task: What is asked: the data module's task, once a trainer has both.

    Raises:
        UserError: If there is no such model folder, or an option is out of its range.
    """

    def __init__(
        self,
        name_or_path: str,
        *,
        optimizer: Callable[[nn.Module], ZerothOrder] | None = None,
        tuning: Tuning | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        objective: Kind = "task",
        micro_batch_size: int | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        check_model_path(name_or_path)
        require(
            micro_batch_size is None or micro_batch_size >= 1,
            f"model.micro_batch_size: must be at least 1, not {micro_batch_size}",
        )
        self.automatic_optimization = False
        self.name_or_path = name_or_path
        self.model: nn.Module | None = None
        self._tuning = tuning or Full()
        # No method is the parameter's default: jsonargparse would carry its options over to the one that is named.
        self._make_optimizer = optimizer or MeZO
        self._make_scheduler = lr_scheduler
        self._objective_kind = objective
        self._micro_batch_size = micro_batch_size
        self._attn_implementation = attn_implementation
        self._trust_remote_code = trust_remote_code
        self._split = False
        self._set_task(Classification())
        self._signals = ExitStack()

    @property
    def zo(self) -> ZerothOrder:
        """The optimizer itself, without Lightning's wrapper."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, ZerothOrder)
        return optimizer

    @override
    def setup(self, stage: str) -> None:
        require(self.trainer.precision != "16-mixed", REFUSE_16_MIXED)
        strategy = self.trainer.strategy
        require(
            isinstance(strategy, SingleDeviceStrategy | DDPStrategy),
            f"trainer.strategy: {type(strategy).__name__} is not supported; take replicated or, for a "
            "model larger than one device, split",
        )
        self._split = isinstance(strategy, SplitStrategy)
        require(
            not (self._split and self._tuning.prefix),
            "model.tuning: a prefix does not go with trainer.strategy `split`; take LoRA",
        )
        if isinstance(strategy, DDPStrategy) and not isinstance(strategy, ReplicatedStrategy) and stage == "fit":
            warnings.warn(
                "strategy: DDP allocates gradient buckets as large as the trainable weights, which a forward-only "
                "step never uses; `strategy: replicated` does without",
                stacklevel=1,
            )
        if isinstance(data := getattr(self.trainer, "datamodule", None), PromptedData) and data.task is not self.task:
            self._set_task(data.task)
        # The model stays in evaluation mode on purpose: dropout would make the two losses of a step incomparable.
        warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode at the start of training")

    def _set_task(self, task: Task) -> None:
        tokenizer = load_tokenizer(self.name_or_path, self._trust_remote_code) if task.written else None
        self.task = task
        self._objective = Objective(self._objective_kind, task, tokenizer)
        self.scores = nn.ModuleDict({f"{s}_{name}": MeanScore() for s in ("val", "test") for name in task.metrics})
        if "macro_f1" in task.metrics and isinstance(task, Classification):
            for stage in ("val", "test"):
                self.scores[f"{stage}_macro_f1"] = MulticlassF1Score(len(task.label_words), average="macro")

    @override
    def configure_model(self) -> None:
        if self.model is None:
            loaded = load_language_model(
                self.name_or_path,
                dtype=torch.get_default_dtype(),
                attn_implementation=self._attn_implementation,
                trust_remote_code=self._trust_remote_code,
            )
            # A cache does not know how much it holds of layers that another process has.
            self._language = LanguageModel(loaded, self._tuning, caches=not self._split)
            self.model = self._language.model

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Gives the model the coefficients that a checkpoint of ZO-Act has, before its weights are loaded."""
        attach_like(self, checkpoint["state_dict"])

    @override
    def configure_optimizers(self) -> Any:
        assert self.model is not None
        optimizer = self._make_optimizer(self.model)
        if self._split:
            optimizer.ranks = SplitRanks(optimizer)
        elif self.trainer.world_size > 1:
            optimizer.ranks = ProcessRanks()
        if self._make_scheduler is None:
            return optimizer
        scheduler = self._make_scheduler(optimizer)
        require(
            isinstance(scheduler, ReduceLROnPlateau) or not isinstance(scheduler, TorchReduceLROnPlateau),
            "model.lr_scheduler: torch's ReduceLROnPlateau does not know what to watch; take "
            "lightning.pytorch.cli.ReduceLROnPlateau with monitor: val/loss",
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @torch.no_grad()
    def objective(self, batch: Batch) -> Tensor:
        """Returns the loss of each example at the weights as they are, shape (batch,), float32."""
        return self._objective_of(list(micro_batches(batch, self._micro_batch_size)))

    def _objective_of(self, parts: list[Batch], copies: int = 1) -> Tensor:
        losses = [self._objective.losses(self._language, part.repeated(copies)).view(copies, -1) for part in parts]
        return torch.cat(losses, dim=1).view(-1)

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        parts = list(micro_batches(batch, self._micro_batch_size))  # cut once: it reads lengths from the device
        zo = self.zo
        rows = self._objective.rows(batch) if zo.individual else None
        require(
            not zo.individual or rows is not None,
            "model.optimizer: directions for each example need as many rows of a batch for one as for another, in one "
            "forward, and this task's examples write their answers, or have different numbers; take model.objective lm",
        )
        if rows is None:
            loss = optimizer.step(lambda: self._objective_of(parts, zo.copies))
        else:
            loss = optimizer.step(lambda: self._objective_of(parts)[rows], examples=batch.indices[rows].tolist())
        scheduler = self.lr_schedulers()
        if scheduler is not None and not isinstance(scheduler, list | ReduceLROnPlateau):
            scheduler.step()
        report = zo.last_step
        assert report is not None
        self.log("train/loss", report.loss, prog_bar=True)
        self.log("zo/forward_passes", float(report.total_forward_passes))
        self.log("zo/learning_rate", report.learning_rate)
        self.log("zo/skipped_steps", float(report.skipped_steps))
        for index, coefficient in enumerate(() if zo.individual else report.coefficients):
            self.log(f"zo/projected_gradient/{index}", coefficient)
        return {"loss": torch.tensor(loss, dtype=torch.float32), "zo": report}

    @override
    def configure_callbacks(self) -> list[Callback]:
        # Lightning sets ``callbacks`` without declaring it, and says so where it exchanges one for another of its type.
        there = self.trainer.callbacks  # type: ignore[attr-defined]  # set, not declared
        return [] if any(type(callback) is _SignalsAfterException for callback in there) else [_SignalsAfterException()]

    # Handlers of signals run where a checkpoint that they write resumes exactly: after a batch's last hook, and while
    # validating. Elsewhere signals wait, not only amid a step: a resumed run would leave out a batch that was fetched
    # and not trained on, and repeat one that was trained on and not yet counted.

    @override
    def on_train_start(self) -> None:
        self._signals.enter_context(deferred_signals())

    @override
    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self._signals.close()
        self._signals.enter_context(deferred_signals())

    @override
    def on_validation_start(self) -> None:
        self._signals.close()

    @override
    def on_validation_end(self) -> None:
        if self._validates_a_fit:
            self._signals.enter_context(deferred_signals())

    @override
    def on_train_end(self) -> None:
        self._signals.close()

    @property
    def _validates_a_fit(self) -> bool:
        return self.trainer.state.fn == "fit" and not self.trainer.sanity_checking

    def _evaluate(self, stage: str, batch: Batch) -> None:
        found = self._objective.evaluate(self._language, batch)
        size = len(found.losses)
        for name in self.task.metrics:
            metric = self.scores[f"{stage}_{name}"]
            if isinstance(metric, MulticlassF1Score):
                assert found.chosen is not None
                assert found.right is not None
                metric.update(found.chosen, found.right)
            else:
                metric = cast("MeanScore", metric)
                metric.update(found.scores[name])
            self.log(f"{stage}/{name}", metric, prog_bar=True, batch_size=size)
        self.log(f"{stage}/loss", found.losses.mean(), prog_bar=True, batch_size=size, sync_dist=True)

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch)

    @override
    def on_validation_epoch_end(self) -> None:
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau) and self._validates_a_fit:
            scheduler.step(self.trainer.callback_metrics[scheduler.monitor])

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", batch)

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Returns what the model answers.

        Returns:
            ``written``, a text for each example, or ``chosen``, the number of the likeliest answer, and
            ``probabilities``, of all answers; shapes (batch,) and (batch, answers), where there are none 0.
        """
        if self._objective.written and isinstance(batch, AnswerBatch):
            return {"written": self._objective.write(self._language, batch)}
        table = self._objective.table(self._language, batch)
        return {"chosen": table.argmax(1), "probabilities": table.softmax(1)}


class _SignalsAfterException(Callback):
    """Hands over the signals that waited when a fit breaks off, of which Lightning tells callbacks, not modules."""

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(pl_module, ZerothOrderModule):
            pl_module._signals.close()


REFUSE_16_MIXED = (
    "trainer.precision: 16-mixed scales gradients, and a forward-only step has none to scale; take bf16-mixed, "
    "bf16-true or 32-true"
)
