"""Says when a run goes wrong: too large a rate, probes that do not differ, skipped steps, metrics that stand still."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override

from zolit.optim.report import StepReport
from zolit_callbacks.checkpoint import deciding_metric, lower_is_better

Trouble = Literal["rate", "alike", "metrics", "diverged", "skipped", "still"]

_MOST = 0.5
"""Share of trained weights from which on a step is compared with their size. LoRA learned with steps of 8 times it."""
_IN_A_ROW = 10
"""Number of steps in a row whose probes do not differ."""
_GROWN = 2.0
"""Growth of the weights above which a run that has not learned counts as diverged. AdamW with LoRA learned with 2.4."""
_GROWN_UNSEEN = 10.0
"""The same for a run without validations, whose training losses say less."""
_GAIN = 0.05
"""Gain of the score by which a run has learned; a constant answer hits a few more or fewer examples by chance.

A score that is better when it is smaller, such as a perplexity, has learned if it fell by this share of itself."""
_FALL = 0.5
"""Factor of the loss before training below which a run has learned. A model that has diverged answers at chance, and
this may be better than a loss before training, but not by so much."""
_LAST = 20
"""Number of the last training losses that are averaged."""
_STILL_STEPS, _STILL_SHARE = 100, 1e-3
"""Steps after which the score should differ from that at the start, or the loss by this share of it."""


class HealthMonitor(pl.Callback):
    """Warns when a run goes wrong, in one sentence, once a run for each kind of trouble, on rank zero.

    The size of weights is their root mean square over all trainable weights. Where they start at 0, it is that of the
    whole model. A callback goes over the weights before the first step, after each validation and after the last step.

    - *rate*: a step moves a weight by about η√Σa², the learning rate times the norm of the step's coefficients. The
      rate is too large if this exceeds the size of the weights. Not all updates move weights by so much, and Adam does
      not. One more pass over the weights therefore checks that they have grown. If they have not, the next check is at
      twice the step. Adapters may move by more than their size; if less than half of the weights is trained, this is
      not checked.
    - *alike*: for ten steps in a row, all losses of a step are equal and all coefficients are 0.
    - *metrics*: a metric of a validation is NaN or infinite.
    - *diverged*: weights are more than twice as large as before the first step, and the validations show no learning:
      the score has not risen by .05 (a perplexity has not fallen by 5 %), and the loss has not halved. Without a
      validation before the first step, the weights are ten times as large, and the loss of the last steps is above half
      of that of the first step.
    - *skipped*: all steps until a validation were skipped.
    - *still*: for a hundred steps or more, the score of each validation is that of the first one, and the loss as good
      as equal (a perplexity, too).

    Checkpoints keep the state, so that a resumed run neither forgets the start nor repeats a sentence. The caller of
    the fit asks ``verdict`` after the final weights are validated; the command line does so.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: set[Trouble] = set()
        self._before: dict[str, float] = {}
        self._after: dict[str, float] = {}
        self._stands_still = True
        self._start: float | None = None
        self._size = 0.0
        self._largest_step = 0.0
        self._first_loss: float | None = None
        self._losses: deque[float] = deque(maxlen=_LAST)
        self._alike = 0
        self._steps = self._skipped = 0

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures the size of the weights, unless the run is resumed."""
        if self._start is None:
            self._size = _size_of(trainer, _trainable(pl_module))
            self._start = self._size or _size_of(trainer, pl_module.parameters())
            self._largest_step = self._start if _share_of_trained(pl_module) >= _MOST else math.inf

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Checks the report of the step. Reads numbers that the host has, and the weights if a step was too large."""
        report: StepReport = cast("dict[str, Any]", outputs)["zo"]
        self._steps, self._skipped = report.step + 1, report.skipped_steps
        if report.skipped:
            return
        if not report.coefficients and not report.total_backward_passes:
            self._start = math.inf  # the weights are the result of a fit, and did not grow by steps
        self._first_loss = report.loss if self._first_loss is None else self._first_loss
        self._losses.append(report.loss)
        self._alike = self._alike + 1 if _probes_are_alike(report) else 0
        # After a rate that is too large, probes are alike because they are too small for the weights.
        if self._alike >= _IN_A_ROW and "rate" not in self._said:
            self._say("alike", self._alike_sentence())
        step = report.learning_rate * math.hypot(*report.coefficients)
        if step > self._largest_step and "rate" not in self._said:
            self._check_step(trainer, pl_module, report, step)

    def _check_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, report: StepReport, step: float) -> None:
        """Warns of a step larger than the weights, if the weights have grown by about this step."""
        before, self._size = self._size, _size_of(trainer, _trainable(pl_module))
        perturbed = report.selection.perturbed_parameters / int(report.selection.sizes.sum())
        # Independent moves add in squares. A quarter of the step is enough, as the estimate is not exact.
        if self._size**2 - before**2 < perturbed * (step / 4) ** 2:
            self._largest_step = 2 * step
            return
        self._say(
            "rate",
            f"step {report.step} moved each weight by about {step:.2g}, and weights had a size of {self._start:.2g} "
            f"(root mean square) before training: the learning rate of {report.learning_rate:.2g} is too large; lower "
            "model.optimizer.lr",
        )

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks the metrics, and in a fit whether the run has diverged or skipped all steps."""
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        wrong = ", ".join(f"{name} is {value}" for name, value in found.items() if not math.isfinite(value))
        if wrong:
            self._say(
                "metrics",
                f"{wrong} in the validation after step {trainer.global_step}: check the weights of the model and the "
                "validation records, or lower model.optimizer.lr if earlier validations had numbers",
            )
        if trainer.sanity_checking:
            self._before = self._before or found
            return
        self._after = found
        # At the end of the fit, the verdict says the rest.
        if trainer.state.fn == "fit" and trainer.global_step != trainer.max_steps:
            self._size = _size_of(trainer, _trainable(pl_module))
            if self._has_diverged(trainer):
                self._say("diverged", self._diverged_sentence(trainer))
            if self._all_skipped():
                self._say("skipped", self._skipped_sentence())
            self._check_movement(f"val/{deciding_metric(trainer)}", _STILL_SHARE if lower_is_better(trainer) else 0.0)

    def _check_movement(self, score: str, still: float) -> None:
        """Warns if no validation moved the score by more than a share, unless another sentence has said why."""
        names = [name for name in (score, "val/loss") if name in self._after and name in self._before]
        first, last = ([metrics[name] for name in names] for metrics in (self._before, self._after))
        shares = [still] * (len(names) - 1) + [_STILL_SHARE]
        pairs = zip(first, last, shares, strict=True) if names else ()
        self._stands_still &= bool(names) and all(abs(new - old) <= share * abs(old) for old, new, share in pairs)
        if self._stands_still and self._steps >= _STILL_STEPS and not self._said & {"rate", "alike", "skipped"}:
            figures = " and ".join(f"{name} ({value:.3g})" for name, value in zip(names, last, strict=True))
            self._say(
                "still",
                f"{figures} did not move in {self._steps} steps: raise model.optimizer.lr, or train weights that "
                "change the answers (model.tuning)",
            )

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures the final weights."""
        self._size = _size_of(trainer, _trainable(pl_module))

    def verdict(self, trainer: pl.Trainer) -> str | None:
        """Returns why the fit learned nothing. Called after the fit and the validation of the final weights.

        Returns:
            One sentence, equal on all ranks; None if no step was made, or the run may have learned.
        """
        if self._all_skipped():
            reason = self._skipped_sentence()
        elif self._has_diverged(trainer):
            reason = self._diverged_sentence(trainer)
        elif self._alike >= _IN_A_ROW and self._alike + self._skipped >= self._steps:
            reason = self._alike_sentence()
        else:
            return None
        best = getattr(cast("Any", trainer).checkpoint_callback, "best_model_path", "")
        return f"the run learned nothing: {reason}" + (
            f"; {best} has the weights of the best validation" if best else ""
        )

    def _say(self, trouble: Trouble, sentence: str) -> None:
        if trouble not in self._said:
            self._said.add(trouble)
            rank_zero_warn(sentence)

    def _all_skipped(self) -> bool:
        return 0 < self._steps == self._skipped

    def _skipped_sentence(self) -> str:
        return (
            f"all {self._steps} steps were skipped, because losses were not finite: check the weights of the "
            "model and the training data, or change model.optimizer.eps or trainer.precision"
        )

    def _alike_sentence(self) -> str:
        return (
            f"the losses of a step did not differ for {self._alike} steps in a row, so that no weight moved: raise "
            "model.optimizer.eps, or train weights that change the loss"
        )

    def _growth(self) -> float:
        """Returns the size of the weights divided by that at the start; 1 if the start has no size to compare with."""
        start = self._start or math.nan
        return self._size / start if math.isfinite(start) else 1.0

    def _has_diverged(self, trainer: pl.Trainer) -> bool:
        if not (self._before and self._after):
            grown = not self._growth() <= _GROWN_UNSEEN  # also if it is NaN
            return grown and self._first_loss is not None and not _mean(self._losses) < _FALL * self._first_loss
        score = f"val/{deciding_metric(trainer)}"
        before, after = self._before.get(score, 0.0), self._after.get(score, 0.0)
        gained = after <= (1 - _GAIN) * before if lower_is_better(trainer) else after - before >= _GAIN
        fell = self._after["val/loss"] < _FALL * self._before["val/loss"]
        return not self._growth() <= _GROWN and not gained and not fell

    def _diverged_sentence(self, trainer: pl.Trainer) -> str:
        if self._before and self._after:
            names = [name for name in (f"val/{deciding_metric(trainer)}", "val/loss") if name in self._after]
            went = [f"{name} went from {self._before[name]:.3g} to {self._after[name]:.3g}" for name in names]
        else:
            went = [f"train/loss went from {self._first_loss:.3g} to {_mean(self._losses):.3g}"]
        return (
            f"after {self._steps} steps the weights are {self._growth():.3g} times as large as before "
            f"training, and {' and '.join(went)}: the run has diverged; start again with a lower model.optimizer.lr"
        )

    @override
    def state_dict(self) -> dict[str, Any]:
        """Returns what was measured and said so far."""
        return {
            "said": sorted(self._said),
            "before": self._before,
            "after": self._after,
            "stands_still": self._stands_still,
            "steps": self._steps,
            "skipped": self._skipped,
            "start": self._start,
            "size": self._size,
            "largest_step": self._largest_step,
            "first_loss": self._first_loss,
            "losses": list(self._losses),
            "alike": self._alike,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a state that ``state_dict`` returned."""
        self._said = set(state_dict["said"])
        self._before = dict(state_dict["before"])
        self._after = dict(state_dict["after"])
        self._stands_still = state_dict["stands_still"]
        self._steps, self._skipped = state_dict["steps"], state_dict["skipped"]
        self._start = state_dict["start"]
        self._size = state_dict["size"]
        self._largest_step = state_dict["largest_step"]
        self._first_loss = state_dict["first_loss"]
        self._losses = deque(state_dict["losses"], maxlen=_LAST)
        self._alike = state_dict["alike"]


def _probes_are_alike(report: StepReport) -> bool:
    """Returns whether a step without a backward pass compared losses, and all of them are equal."""
    # SensZOQ makes one backward pass before its first step; methods that train by backpropagation make one a step.
    forward_only = report.total_backward_passes <= 1
    return forward_only and len(report.losses) > 1 and len(set(report.losses)) == 1 and not any(report.coefficients)


def _trainable(module: pl.LightningModule) -> Iterable[torch.nn.Parameter]:
    return (parameter for parameter in module.parameters() if parameter.requires_grad)


def _share_of_trained(module: pl.LightningModule) -> float:
    return sum(p.numel() for p in _trainable(module)) / sum(p.numel() for p in module.parameters())


@torch.no_grad()
def _size_of(trainer: pl.Trainer, parameters: Iterable[torch.nn.Parameter]) -> float:
    """Returns the root mean square of parameters on all ranks. Parameters that another rank holds are on meta."""
    own = [p for p in parameters if not p.is_meta and p.is_floating_point()]
    if not own:
        return 0.0
    norms = torch.stack(
        [torch.linalg.vector_norm(p, dtype=torch.promote_types(p.dtype, torch.float32)).to(own[0].device) for p in own]
    )
    sums = norms.new_tensor([sum(norm**2 for norm in norms.tolist()), sum(p.numel() for p in own)])
    # Strategies with one process return the tensor itself.
    squares, count = cast("torch.Tensor", trainer.strategy.reduce(sums, reduce_op="sum")).tolist()
    return math.sqrt(squares / count)


def _mean(losses: Iterable[float]) -> float:
    values = list(losses)
    return sum(values) / len(values) if values else math.nan
