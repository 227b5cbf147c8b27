"""The LightningModule: a language model, an objective, and zeroth-order steps in manual optimization."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.cli import LRSchedulerCallable
from lightning.pytorch.plugins.precision import HalfPrecision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from typing_extensions import override

from zolit.data.datamodule import PromptedData
from zolit.errors import require
from zolit.methods import MeZO
from zolit.models.batches import AnswerBatch, Batch, TextBatch, micro_batches
from zolit.models.language_model import LanguageModel
from zolit.models.loading import check_model_path, load_language_model, load_tokenizer
from zolit.models.tuning import Full, Tuning
from zolit.optim.base_point import Closure
from zolit.optim.modules.adapters import attach_from_state
from zolit.optim.modules.answer_head import attach_probe_from_state, check_words, tell_words
from zolit.optim.optimizer import ZerothOrder
from zolit.tasks.classification import Classification
from zolit.tasks.task import Task
from zolit.training.averaging import Shared, check_averaged
from zolit.training.checkpoint_io import AtomicCheckpointIO
from zolit.training.objective import Kind, Objective
from zolit.training.precision import LoadedPrecision
from zolit.training.rate import choose_rate_of_run
from zolit.training.replicated import ProcessCollectives, ReplicatedStrategy
from zolit.training.report_log import log_report
from zolit.training.restoring import check_weights, take_new_rate
from zolit.training.row_check import RowCheck
from zolit.training.safe_points import SignalSafeModule
from zolit.training.scheduler import make_scheduler, step_after_batch, step_after_validation
from zolit.training.scores import Scores
from zolit.training.split import SplitCollectives, SplitStrategy


class ZerothOrderModule(SignalSafeModule):
    """Fine-tunes a language model with forward passes alone, on answers to prompts or on plain texts.

    Each training step is one step of the optimizer, which evaluates the objective several times on the same batch;
    Lightning counts it as one step. ``training_step`` returns ``{"loss": ..., "zo": StepReport}``, and callbacks read
    the report there. Lightning calls ``on_before_optimizer_step`` of other callbacks after each forward, while the
    weights are perturbed. Callbacks must read the weights in other hooks.

    Args:
        name_or_path: Folder or hub id of a causal or masked language model.
        optimizer: The method, such as MeZO or CurvZO, with its options under ``init_args``; `zolit methods` lists all
            methods. null is MeZO.
        tuning: Which weights are trained: zolit.models.Full (all, or those that match a pattern), zolit.models.LoRA or
            zolit.models.PrefixTuning; null is all.
        lr_scheduler: A scheduler of torch.optim.lr_scheduler, stepped after each training step, or
            lightning.pytorch.cli.ReduceLROnPlateau, stepped after each validation; null is a constant rate.
        objective: The loss. task is the cross-entropy over the answers' likelihoods or, for tasks with long answers and
            for plain texts, minus the log-likelihood of the correct answer or of the text, as in MeZO. lm is minus this
            log-likelihood for all tasks. metric is one minus the answer's score (accuracy of a choice, F1 of a
            generated answer), which has no gradient.
        micro_batch_size: Evaluate a batch in parts of at most this many examples. This takes less memory, and gives the
            same step up to rounding; null is the whole batch. A backward pass computes each part again.
        check_rows: Compare the loss of one example alone with its loss in the first batch, and refuse a model that does
            not ignore padding.
        attn_implementation: Attention of transformers, such as sdpa or eager; null lets transformers choose.
        trust_remote_code: Run code that comes with the model.

    Attributes:
        task: The task. A trainer sets it to that of the data module; before, it is Classification with its defaults.

    Raises:
        UserError: If the model folder does not exist, or an option is out of range.
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
        check_rows: bool = True,
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
        # The parameter has no default method: jsonargparse would pass the default's options on to another method.
        self._make_optimizer = Shared(optimizer or MeZO)
        self._make_scheduler = lr_scheduler and Shared(lr_scheduler)
        self._objective_kind = objective
        self._micro_batch_size = micro_batch_size
        self._row_check = RowCheck(check_rows)
        self._attn_implementation = attn_implementation
        self._trust_remote_code = trust_remote_code
        self._split = False
        self._set_task(Classification())

    @property
    def zo(self) -> ZerothOrder:
        """The optimizer, without Lightning's wrapper."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, ZerothOrder)
        return optimizer

    @override
    def setup(self, stage: str) -> None:
        """Checks precision and strategy, and takes the task of the data module; see ``LightningModule.setup``."""
        require(self.trainer.precision != "16-mixed", REFUSE_16_MIXED)
        strategy = self.trainer.strategy
        require(
            isinstance(strategy, SingleDeviceStrategy | DDPStrategy),
            f"trainer.strategy: {type(strategy).__name__} is not supported; use replicated or, for a "
            "model larger than one device, split",
        )
        if type(strategy.checkpoint_io) is TorchCheckpointIO:
            strategy.checkpoint_io = AtomicCheckpointIO()
        plugin = strategy.precision_plugin
        if type(plugin) is HalfPrecision:
            strategy.precision_plugin = LoadedPrecision(plugin.precision)
        self._split = isinstance(strategy, SplitStrategy)
        require(
            not (self._split and self._tuning.num_prefix_tokens),
            "model.tuning: prefix tuning does not support trainer.strategy `split`; use LoRA",
        )
        if isinstance(strategy, DDPStrategy) and not isinstance(strategy, ReplicatedStrategy) and stage == "fit":
            warnings.warn(
                "strategy: DDP allocates gradient buckets as large as the trainable weights, which a forward-only "
                "step never uses; `strategy: replicated` allocates none",
                stacklevel=1,
            )
        if isinstance(data := getattr(self.trainer, "datamodule", None), PromptedData) and data.task is not self.task:
            self._set_task(data.task)
        # The model stays in evaluation mode, because dropout would make the two losses of a step incomparable.
        warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode at the start of training")

    def _set_task(self, task: Task) -> None:
        tokenizer = load_tokenizer(self.name_or_path, self._trust_remote_code) if task.generates else None
        self.task = task
        self._objective = Objective(self._objective_kind, task, tokenizer)
        self.scores = Scores(task)

    @property
    def _label_tokens(self) -> Tensor | None:
        data = getattr(self.trainer, "datamodule", None)
        return data.label_tokens if isinstance(data, PromptedData) else None

    @override
    def configure_model(self) -> None:
        """Loads the model, once; see ``LightningModule.configure_model``."""
        if self.model is None:
            loaded = load_language_model(
                self.name_or_path,
                dtype=torch.get_default_dtype(),
                attn_implementation=self._attn_implementation,
                trust_remote_code=self._trust_remote_code,
            )
            # A process without the first layer does not know how many tokens a cache holds.
            self._language = LanguageModel(loaded, self._tuning, use_cache=not self._split)
            self.model = self._language.model

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks a checkpoint, and adds what it has beside the model (ZO-Act, LinearProbe)."""
        check_words(checkpoint["state_dict"], self._label_tokens)
        attach_from_state(self, checkpoint["state_dict"])
        attach_probe_from_state(self, checkpoint["state_dict"])
        check_weights(checkpoint["state_dict"], self.state_dict())

    @override
    def configure_optimizers(self) -> Any:
        """Creates the optimizer, its collectives and the scheduler; see ``LightningModule.configure_optimizers``."""
        assert self.model is not None
        tell_words(self.model, self._label_tokens)
        optimizer = self._make_optimizer(self.model)
        check_averaged(self)
        self._language.keeps_logits_whole = optimizer.per_example
        if self._split:
            optimizer.collectives = SplitCollectives(optimizer)
        elif self.trainer.world_size > 1:
            optimizer.collectives = ProcessCollectives(self.model)
        if self._make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": make_scheduler(self._make_scheduler, optimizer)}

    @override
    def on_train_start(self) -> None:
        """Takes a new learning rate in a resumed run; see ``take_new_rate``."""
        super().on_train_start()
        take_new_rate(self.zo, bool(self.lr_schedulers()))

    @torch.no_grad()
    def objective(self, batch: Batch) -> Tensor:
        """Returns the loss of each example at the current weights, shape (batch,), float32."""
        return self._losses(list(micro_batches(batch, self._micro_batch_size)))

    def _losses(self, parts: list[Batch], copies: int = 1) -> Tensor:
        """Returns the loss of each example of the batch in parts, repeated ``copies`` times, shape (copies·batch,)."""
        repeated = [part.repeated(copies) for part in parts]
        losses = [part.view(copies, -1) for part in self._objective.losses_of_parts(self._language, repeated)]
        return torch.cat(losses, dim=1).view(-1)

    def _closure_of(self, batch: Batch) -> tuple[Closure, list[int] | None]:
        """Returns the closure of a step on a batch. If its losses are those of rows, also returns their ids."""
        parts = list(micro_batches(batch, self._micro_batch_size))  # split once: it reads lengths from the device
        zo = self.zo
        if not (zo.per_example or (zo.update.needs_row_losses and not self._objective.has_gradient)):
            return lambda: self._losses(parts, zo.batch_repeats), None
        rows = self._objective.example_of_row(batch, zo.collectives)
        return lambda: self._losses(parts)[rows], batch.indices[rows].tolist()

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Makes one step of the optimizer and logs its report. Called once for each training batch.

        Returns:
            ``{"loss": ..., "zo": StepReport}``, for callbacks.

        Raises:
            UserError: If the method has per-example directions that the task does not allow.
        """
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        self._look_at(batch)
        self._row_check(batch, lambda: self.objective(batch), self._objective, self._language)
        closure, ids = self._closure_of(batch)
        if self.zo.needs_rate:
            choose_rate_of_run(self, self.zo, self._make_scheduler, self._closure_of, batch)
        answers = self._objective.answers(self._language, batch) if self.zo.needs_answers else None
        loss = optimizer.step(closure, examples=ids, repeats_batch=ids is None, answers=answers)
        step_after_batch(self.lr_schedulers())
        report = self.zo.last_step
        assert report is not None
        log_report(self, report, report.coefficients if ids is None else ())
        return {"loss": torch.tensor(loss, dtype=torch.float32), "zo": report}

    def _look_at(self, batch: Batch) -> None:
        if isinstance(batch, TextBatch):
            self._language.prepare_texts(batch)

    def _evaluate(self, stage: str, batch: Batch) -> None:
        self._look_at(batch)
        found = self._objective.evaluate(self._language, batch)
        self._row_check(batch, lambda: found.losses, self._objective, self._language)
        self.scores.log(self, stage, found)

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs loss and scores. Called once for each validation batch."""
        self._evaluate("val", batch)

    @override
    def on_validation_epoch_end(self) -> None:
        """Steps a ReduceLROnPlateau scheduler by its metric. Called after each validation."""
        super().on_validation_epoch_end()
        if self.validates_a_fit:
            step_after_validation(self.lr_schedulers(), self.trainer.callback_metrics)

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs loss and scores. Called once for each test batch."""
        self._evaluate("test", batch)

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Returns the model's answers.

        Returns:
            Where the model generates answers: ``generated``, one text for each example. For plain texts: ``losses``,
            the mean loss of the tokens of each text, and ``tokens``, their number, both of shape (batch,). Else
            ``chosen``, the index of the likeliest answer, shape (batch,), and ``probabilities`` of all answers, shape
            (batch, answers), 0 where there is no answer.
        """
        self._look_at(batch)
        if isinstance(batch, TextBatch):
            return {"losses": self._objective.losses(self._language, batch), "tokens": batch.predicted}
        if self._objective.generates and isinstance(batch, AnswerBatch):
            return {"generated": self._objective.generate(self._language, batch)}
        scores = self._objective.choice_scores(self._language, batch)
        return {"chosen": scores.argmax(1), "probabilities": scores.softmax(1)}


REFUSE_16_MIXED = (
    "trainer.precision: 16-mixed scales gradients, which a forward-only step does not have; use bf16-mixed, "
    "bf16-true or 32-true"
)
