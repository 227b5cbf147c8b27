"""One zeroth-order step: select, draw, probe, estimate, update.

``ZerothOrder`` calls five stages in turn, and does not depend on how a stage works. A method, such as that of a paper,
is one implementation for each stage. The methods are in ``zolit/methods``. ``zolit/optim/README.md`` is the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from zolit.errors import require
from zolit.optim.answers import Answers
from zolit.optim.base_point import BasePoint, Closure, NotFinite
from zolit.optim.blocks import BlockSample, partition, trainable_weights
from zolit.optim.collectives import Collectives
from zolit.optim.compatibility import check_compatible
from zolit.optim.counting import COUNTERS, count, warn_or_stop
from zolit.optim.estimators.base import Estimate, Estimator
from zolit.optim.estimators.spsa import SPSA
from zolit.optim.evaluation import Evaluation
from zolit.optim.noise import NoiseCheck
from zolit.optim.perturbation.base import Perturbation
from zolit.optim.perturbation.directions import Directions
from zolit.optim.perturbation.gaussian_pool import GaussianPool
from zolit.optim.probing.base import Prober
from zolit.optim.probing.streamed.prober import Streamed
from zolit.optim.randomness import Step
from zolit.optim.rate import LearningRate, factor_of
from zolit.optim.report import StepReport
from zolit.optim.resuming import check_same, signature
from zolit.optim.selection.all_blocks import AllBlocks
from zolit.optim.selection.base import Selection
from zolit.optim.signals import deferred_signals
from zolit.optim.stage import Stage
from zolit.optim.updates.base import Update
from zolit.optim.updates.gradient import Gradient
from zolit.optim.updates.sgd import SGD


class ZerothOrder(torch.optim.Optimizer):
    """Estimates gradients from forward passes, and descends along them.

    On a GPU, the host waits once for each call of ``Evaluation``, to read the losses. Two-point SPSA makes one call a
    step, and MeZO waits for nothing else. With curvature sampling, the host also reads one number for each block and
    a table of the sums of the pool. Methods that read weights or masks on the host wait more often.

    Example:
        >>> model = torch.nn.Linear(4, 1)
        >>> inputs, targets = torch.randn(8, 4), torch.randn(8, 1)
        >>> optimizer = ZerothOrder(model, lr=1e-2)
        >>> loss = optimizer.step(lambda: (model(inputs) - targets).square().mean(1))

    Args:
        model: The model. Its parameters that require a gradient are tuned.
        lr: η, the learning rate; ``auto`` needs a call of ``choose_rate`` before the first step.
        eps: ε, the probe radius.
        seed: Base seed of directions and samples; None is 0. The command line replaces None by seed_everything.
        blocks: How the weights are partitioned for the selection: ``tensor``, ``layer`` or a regular expression.
        selection: Samples the blocks to perturb; None is AllBlocks.
        perturbation: The law of the directions; None is GaussianPool.
        prober: Computes losses at perturbed weights; None is Streamed.
        estimator: Computes the coefficients of the directions from losses; None is two-point SPSA.
        update: Moves the weights; None is SGD.
        max_skipped: Number of skipped steps in a row after which the run stops; see ``step``.

    Attributes:
        model: The model.
        weights: Its trainable weights.
        lr: The option ``lr``. ``param_groups`` has the present rate.
        needs_rate: Whether the rate has yet to be chosen.
        counts: Number of steps and passes so far.
        last_step: Report of the latest step; None before the first.
        resumed_lr: The option ``lr`` of the optimizer whose state was loaded; None without such a state.
        collectives: Those of the processes that train together. A strategy replaces them before the first step.

    Raises:
        UserError: If a number is out of its range, the model cannot be tuned, or stages do not work together.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: LearningRate = 1e-6,
        eps: float = 1e-3,
        seed: int | None = None,
        blocks: str = "tensor",
        selection: Selection | None = None,
        perturbation: Perturbation | None = None,
        prober: Prober | None = None,
        estimator: Estimator | None = None,
        update: Update | None = None,
        max_skipped: int = 10,
    ) -> None:
        require(0.0 < eps < float("inf"), f"eps: the probe radius must be positive and finite, not {eps}")
        require(max_skipped >= 1, f"max_skipped: must be at least 1, not {max_skipped}")
        self.weights = weights = trainable_weights(model)
        super().__init__([(weight.name, weight.parameter) for weight in weights], {"lr": factor_of(lr)})
        self.model = model
        self.lr, self.needs_rate = lr, lr == "auto"
        self.blocks = partition(weights, blocks)
        self.eps = eps
        self.seed = seed or 0
        self.max_skipped = max_skipped
        # Weights that another process holds are on the meta device.
        self._local_weights = [weight for weight in weights if not weight.parameter.is_meta]
        require(bool(self._local_weights), "trainer.strategy: a process has no weight to tune; use fewer processes")
        self.selection = selection or AllBlocks()
        self.perturbation = perturbation or GaussianPool()
        self.prober = prober or Streamed()
        self.estimator = estimator or SPSA()
        self.update = update or SGD()
        check_compatible(self.selection, self.perturbation, self.prober, self.estimator, self.update)
        for stage in self.stages.values():
            stage.bind(model, weights, self.blocks)
        self.collectives = Collectives()
        self.last_step: StepReport | None = None
        self.resumed_lr: LearningRate | None = None
        self.counts = dict.fromkeys(COUNTERS, 0)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuses a second group of parameters with a UserError, since blocks would lack it. torch adds the first."""
        require(
            not self.param_groups,
            "add_param_group: the weights are fixed when an optimizer is made; set requires_grad, and make a new one",
        )
        super().add_param_group(param_group)

    @property
    def stages(self) -> dict[str, Stage]:
        """The five stages by name, in the order of a step."""
        return {
            "selection": self.selection,
            "perturbation": self.perturbation,
            "prober": self.prober,
            "estimator": self.estimator,
            "update": self.update,
        }

    @property
    def per_example(self) -> bool:
        """Whether each example has a separate direction. ``step`` then takes the ids of the examples."""
        return self.estimator.per_example

    @property
    def batch_repeats(self) -> int:
        """Number of copies of the batch that the closure must evaluate. Read by the closure in each forward.

        See ``Prober.batch_repeats``. The caller announces such a closure by ``step(closure, repeats_batch=True)``.
        """
        return self.prober.batch_repeats

    @property
    def needs_answers(self) -> bool:
        """Whether ``step`` must be told the correct answers of the batch."""
        return self.update.needs_answers

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch's closure is optional
        self,
        closure: Closure,
        examples: Sequence[int] | None = None,
        repeats_batch: bool = False,
        answers: Answers | None = None,
    ) -> float:
        """Makes one step. Called once for each batch.

        If a loss or a gradient is NaN or infinite, the step is skipped: the weights and all state keep their values.
        ``FusedBackprop`` cannot undo a step. There a weight whose gradient is not finite keeps its value and its state,
        the other weights move, and the step counts as skipped.

        Args:
            closure: Returns the mean loss of the batch, shape (), or the loss of each example, shape (batch,). It is
                called once a forward pass, always on the same batch, under ``torch.no_grad``. Joint probing makes a few
                additional forwards before its first joint forward. Per-example probing makes one additional forward
                when a weight is first perturbed. The report does not count these.
            examples: Ids of the rows of the batch, for per-example directions. The direction of an example depends on
                its id only, not on its position, batch or rank. Rows with the same id share a direction, but each row
                has a separate loss. None uses the positions in the batch as ids.
            repeats_batch: Whether the closure repeats its batch ``batch_repeats`` times.
            answers: The correct answers of the batch, for updates that fit them.

        Returns:
            The mean of the losses of the step, over all ranks. ``last_step`` holds the other numbers.

        Raises:
            NonFiniteLossError: If this is the ``max_skipped``-th skipped step in a row.
            UserError: If per-example directions on several ranks have no ids.
        """
        require(
            examples is not None or self.collectives.size == 1 or not self.per_example,
            "step: on several processes examples need ids (examples=...); without ids, examples of different ranks "
            "would share directions",
        )
        with deferred_signals(), deferred_signals(interrupts=True) as interrupts:  # Ctrl-C acts in forwards alone
            try:
                return self._step(interrupts.acting_during(closure), examples, repeats_batch, answers)
            except BaseException:
                self.update.rollback()
                raise

    def _step(
        self, closure: Closure, examples: Sequence[int] | None, repeats_batch: bool, answers: Answers | None
    ) -> float:
        require(not self.needs_rate, "lr: auto needs zolit.choose_rate before the first step; or set a number")
        noise = None if self.last_step else NoiseCheck(closure, self.model, self._local_weights)
        step = Step(self.seed, self.counts["steps"])
        lr = float(self.param_groups[0]["lr"])
        base = BasePoint(self.model, noise or closure, self.collectives, step, lr, answers)
        trouble = self._prepare(base)
        sample = self.selection.select(step)
        self.perturbation.begin_step(step)
        ids = (examples or ()) if self.per_example else range(self.estimator.num_directions)
        directions = Directions(sample, self.perturbation, step, ids)
        estimate: Estimate | None = None
        if trouble is None:
            directions.prefetch()
            try:
                evaluation = Evaluation(base, self.prober, directions, self.per_example, repeats_batch)
                estimate = self.estimator.estimate(evaluation, self.eps)
                if not estimate.coefficients.isfinite().all():
                    raise NotFinite("the gradient estimate")
                if self.per_example:
                    directions.gather_examples(self.collectives)
            except NotFinite as found:
                estimate, trouble = None, found
        self.last_step = self._update(base, sample, directions, estimate)
        if noise and self.estimator.probes:
            noise.warn(self.eps if self.prober.rounds_weights else float("inf"))
        if trouble is not None:
            losses = f"the losses {base.losses} are not all finite"
            what = f"{trouble} is not finite" if str(trouble) else losses
            warn_or_stop(self.counts, self.max_skipped, what, trouble.moved)
        return self.last_step.loss

    def _prepare(self, base: BasePoint) -> NotFinite | None:
        """Calls ``prepare`` of the update, the selection and the law; returns what was not finite."""
        try:
            self.update.prepare(base)
            base.known_loss = None  # the update may have moved θ
            self.selection.prepare(base)
            self.perturbation.prepare(base)
        except NotFinite as found:
            return found
        return None

    def _update(
        self, base: BasePoint, sample: BlockSample, directions: Directions, estimate: Estimate | None
    ) -> StepReport:
        """Moves the weights, lets stages learn, and returns the report. Without an estimate, the step is skipped."""
        coefficients = [0.0] * directions.count if estimate is None else estimate.coefficients.tolist()
        if estimate is not None:
            gradient = Gradient(directions, coefficients, self.collectives)
            self.update.apply(self._local_weights, gradient, base.lr, base.step)
            self.selection.observe(sample, directions, estimate.derivatives.tolist(), gradient.squared_norms())
            self.perturbation.observe(directions, estimate.curvatures)
        else:
            self.update.rollback()
        return count(self.counts, base, coefficients, estimate is None, base.lr, self.selection.report(sample))

    def scratch_bytes(self) -> int:
        """Returns the bytes that all stages hold in addition to the weights. Called when memory is reported.

        These are noise, masks, copies, buffers and momentum.
        """
        return sum(stage.scratch_bytes() for stage in self.stages.values())

    def state_dict(self) -> dict[str, Any]:
        """Returns all state that a resumed run needs to equal an uninterrupted one. Called when a checkpoint is saved.

        The state of the stages is under the key ``zo``, by the names of stages and weights. torch's per-parameter state
        would not do: loading casts it to the type of the parameter, and scores or velocities would become bfloat16.
        """
        stages = {name: stage.state_dict() for name, stage in self.stages.items()}
        fixed = {"seed": self.seed, "lr": self.lr, "needs_rate": self.needs_rate, "signature": self._signature()}
        return {**super().state_dict(), "zo": {**self.counts, **fixed, **stages}}

    def _signature(self) -> dict[str, str]:
        return signature(type(self).__name__, self.stages, self.blocks)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned. Called when a run resumes.

        The learning rate and the seed are restored too, so that the resumed run draws the same directions.

        Raises:
            UserError: If the state is of another method, or of other blocks.
        """
        check_same(state_dict, self._signature())
        state = state_dict["zo"]
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "zo"})
        self.seed = state["seed"]
        self.resumed_lr, self.needs_rate = state["lr"], state["needs_rate"]
        self.counts = {counter: state[counter] for counter in COUNTERS}
        for name, stage in self.stages.items():
            stage.load_state_dict(state[name])
