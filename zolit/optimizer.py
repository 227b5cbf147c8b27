"""One zeroth-order step: select, draw, probe, estimate, update.

``ZerothOrder`` walks through five rooms and knows what happens in none of them. A method (a paper) is one choice per
room and stands in ``zolit/methods``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from zolit.blocks import partition, trainable_weights
from zolit.choice import Choice
from zolit.closure import Closure, Look, NotFinite
from zolit.directions import Directions
from zolit.errors import NonFiniteLossError, require
from zolit.estimators import SPSA, Estimate, Estimator
from zolit.hashing import mix, name_key
from zolit.mixing import check_mix
from zolit.perturbation import GaussianPool, Perturbation
from zolit.probing import Prober, Streamed
from zolit.ranks import Ranks
from zolit.report import StepReport
from zolit.scratch import Scratch
from zolit.selection import Everything, Selection
from zolit.signals import deferred_signals
from zolit.updates import SGD, Update

_UPDATE = name_key("update")


class ZerothOrder(torch.optim.Optimizer):
    """Estimates gradients from forward passes alone and descends along them.

    The loss goes to the host once per call of the estimator's ``evaluate`` (two-point SPSA: once a step), and so do,
    with curvature selection, one number per block and a table of the pool's sums. MeZO's step waits for nothing else;
    methods that look at weights or masks do.

    Example:
        >>> model = torch.nn.Linear(4, 1)
        >>> inputs, targets = torch.randn(8, 4), torch.randn(8, 1)
        >>> optimizer = ZerothOrder(model, lr=1e-2)
        >>> loss = optimizer.step(lambda: (model(inputs) - targets).square().mean(1))

    Args:
        model: The model; its parameters that require a gradient are tuned.
        lr: η, the learning rate.
        eps: ε, the probe radius.
        seed: Base seed of directions and samples.
        blocks: How the weights are partitioned for the selection: ``tensor``, ``layer`` or a regular expression.
        selection: Which blocks move?
        perturbation: Which directions are drawn? None is GaussianPool.
        prober: How are losses at perturbed weights obtained? None is Streamed.
        estimator: How far along each direction?
        update: How do the weights move?
        max_skipped: Stop when so many steps in a row had a loss that was not finite.

    Attributes:
        model: The model.
        last_step: Report of the latest step; None before the first.
        ranks: The processes that train together; one, unless somebody sets it before the first step.

    Raises:
        UserError: If a number is out of its range, the model or its blocks will not do, or rooms do not go together.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-6,
        eps: float = 1e-3,
        seed: int = 0,
        blocks: str = "tensor",
        selection: Selection | None = None,
        perturbation: Perturbation | None = None,
        prober: Prober | None = None,
        estimator: Estimator | None = None,
        update: Update | None = None,
        max_skipped: int = 10,
    ) -> None:
        require(0.0 <= lr < math.inf, f"lr: the learning rate must be at least 0 and finite, not {lr}")
        require(0.0 < eps < math.inf, f"eps: the probe radius must be positive and finite, not {eps}")
        require(max_skipped >= 1, f"max_skipped: must be at least 1, not {max_skipped}")
        self._weights = trainable_weights(model)
        super().__init__([(weight.name, weight.parameter) for weight in self._weights], {"lr": lr})
        self.blocks = partition(self._weights, blocks)
        self.eps = eps
        self.seed = seed
        self.selection = selection or Everything()
        # Of a model that is split over processes the others' weights are on no device.
        self._there = [weight for weight in self._weights if not weight.parameter.is_meta]
        require(bool(self._there), "trainer.strategy: a process has no weight to tune; take fewer processes")
        self._device = self._there[0].parameter.device
        self.perturbation = perturbation or GaussianPool()
        self.prober = prober or Streamed()
        self.estimator = estimator or SPSA()
        self.update = update or SGD()
        check_mix(self.selection, self.perturbation, self.prober, self.estimator)
        self.max_skipped = max_skipped
        self.ranks = Ranks()
        self.last_step: StepReport | None = None
        self.model = model
        self.selection.bind(self.blocks, seed)
        self.perturbation.bind(self._weights)
        self.prober.bind(model, self._weights)
        self.update.bind(self._weights)
        self._scratch = Scratch()
        self._steps = 0
        self._forwards = 0
        self._backwards = 0
        self._skipped = 0
        self._skipped_in_a_row = 0

    @property
    def individual(self) -> bool:
        """Whether every example has a direction of its own; ``step`` then asks what the examples are called."""
        return not self.estimator.directions

    @property
    def copies(self) -> int:
        """How often the closure is to repeat its batch along the first dimension in the forward that it is called for.

        1, or, where two probes share a forward (``probing="joint"``), 2. The closure then returns the loss of each
        example, shape (copies·batch,); one that does not ask is called for one probe at a time.
        """
        return self.prober.copies

    @torch.no_grad()
    def step(self, closure: Closure, examples: Sequence[int] | None = None) -> float:  # type: ignore[override]  # torch's may do without
        """Makes one step.

        A step with a loss that is NaN or infinite leaves the weights and the selection's knowledge alone.

        Args:
            closure: Returns the mean loss of the batch, shape (), or the loss of each example, shape (batch,). It is
                called once per forward pass, always on the same batch, under ``torch.no_grad``. Probing jointly, see
                ``copies``, makes a few forwards more before the first step, and directions for each example one more
                when a weight is first perturbed; the report does not count them.
            examples: What the examples are called, where each has a direction of its own: example by example the same
                in whatever order, batch or process they come. Where an example takes several rows
                of the batch, each row has its name and its loss. None names them by their places in the batch.

        Returns:
            The mean of the step's losses, over all ranks; the full story is in ``last_step``.

        Raises:
            NonFiniteLossError: If this is the ``max_skipped``-th step in a row with such a loss.
        """
        require(
            examples is not None or self.ranks.size == 1 or not self.individual,
            "step: on several processes examples need names (examples=...), or those of one rank would share the "
            "directions of another's",
        )
        with deferred_signals():
            return self._step(closure, examples)

    def _step(self, closure: Closure, examples: Sequence[int] | None) -> float:
        look = Look(self.model, closure, self.ranks, self._steps)
        losses = look.losses
        seen = False
        with suppress(NotFinite):
            self.update.prepare(look)
            look.at_theta = None  # θ may have moved
            self.selection.prepare(look)
            self.perturbation.prepare(look)
            seen = True
        choice = self.selection.select(self._steps)
        directions = Directions(
            self.blocks,
            choice,
            self.perturbation,
            self.seed,
            self._steps,
            self.estimator.directions,
            self._scratch,
            self.ranks,
        )
        if self.individual and examples is not None:
            directions.rename(examples)

        def evaluate(queries: Tensor) -> Tensor:
            known = torch.zeros(len(queries), dtype=torch.bool)
            if look.at_theta is not None and not self.individual:
                known = ~queries.any(1)
            if known.all():
                return torch.full((len(queries),), look.at_theta or 0.0, dtype=torch.float64)
            own = self.prober.losses(closure, directions, queries[~known])
            answer = (self.ranks.gather(own) if self.individual else self.ranks.mean(own)).cpu().double()
            losses.extend((answer.mean(1) if self.individual else answer).tolist())
            if not answer.isfinite().all():
                raise NotFinite
            if known.any():
                all_of_them = torch.full((len(queries),), look.at_theta or 0.0, dtype=torch.float64)
                all_of_them[~known] = answer
                return all_of_them
            return answer

        estimate: Estimate | None = None
        if seen:
            with suppress(NotFinite):
                estimate = self.estimator.estimate(evaluate, self.eps)
                if self.individual:
                    directions.exchange()
        self._backwards += look.backwards
        with deferred_signals(interrupts=True):  # weights, what was learned and the counters move together
            self._move(choice, directions, estimate, losses)
        assert self.last_step is not None
        if estimate is None:
            self._complain(losses)
        return self.last_step.loss

    def _move(self, choice: Choice, directions: Directions, estimate: Estimate | None, losses: list[float]) -> None:
        """Updates the weights and reports; a step without an estimate is skipped."""
        lr = float(self.param_groups[0]["lr"])
        coefficients = [0.0] * directions.count
        if estimate is not None:
            coefficients = estimate.coefficients.tolist()
            key = mix(self.seed, _UPDATE, self._steps)
            self.update.apply(self._there, directions, coefficients, lr, key)
            directions.add_up()
            self.selection.observe(choice, directions, estimate.derivatives.tolist())
            self.perturbation.observe(directions, estimate)
        else:
            self.update.abandon()
        skipped = estimate is None
        self._forwards += len(losses)
        self._skipped += skipped
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        self.last_step = StepReport(
            step=self._steps,
            loss=sum(losses) / len(losses),
            losses=tuple(losses),
            coefficients=tuple(coefficients),
            forward_passes=len(losses),
            total_forward_passes=self._forwards,
            skipped=skipped,
            skipped_steps=self._skipped,
            learning_rate=lr,
            selection=self.selection.report(choice),
            total_backward_passes=self._backwards,
        )
        self._steps += 1

    def _complain(self, losses: list[float]) -> None:
        where = f"step {self._steps - 1}: the losses {losses} are not all finite"
        if self._skipped_in_a_row >= self.max_skipped:
            msg = (
                f"{where}, for {self._skipped_in_a_row} steps in a row (max_skipped): lower lr or eps, "
                "or look at the data and the precision"
            )
            raise NonFiniteLossError(msg)
        if self._skipped == 1:
            msg = f"{where}; the weights were left alone. This is said once; skipped steps are counted in the report"
            warnings.warn(msg, RuntimeWarning, stacklevel=6)  # beyond torch's wrappers of step

    def scratch_bytes(self) -> int:
        """Returns the bytes held beside the weights: noise, masks, copies of weights, buffers, momentum."""
        return (
            self._scratch.bytes()
            + self.selection.scratch_bytes()
            + self.perturbation.scratch_bytes()
            + self.prober.scratch_bytes()
            + self.update.scratch_bytes()
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a resumed run needs to go on as if it had not stopped.

        The rooms' state stands under a key of its own, by names: what torch keeps per parameter would be cast to the
        parameters' type on loading, and scores or velocities in bfloat16 are not what was saved.
        """
        return {
            **super().state_dict(),
            "zo": {
                "steps": self._steps,
                "forwards": self._forwards,
                "backwards": self._backwards,
                "skipped": self._skipped,
                "skipped_in_a_row": self._skipped_in_a_row,
                "seed": self.seed,
                "selection": self.selection.state_dict(),
                "perturbation": self.perturbation.state_dict(),
                "estimator": self.estimator.state_dict(),
                "update": self.update.state_dict(),
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a state that ``state_dict`` returned; the seed is the state's, so that the directions go on."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "zo"})
        state = state_dict["zo"]
        self._steps = state["steps"]
        self._forwards = state["forwards"]
        self._backwards = state["backwards"]
        self._skipped = state["skipped"]
        self._skipped_in_a_row = state["skipped_in_a_row"]
        self.seed = state["seed"]
        self.selection.bind(self.blocks, self.seed)
        self.selection.load_state_dict(state["selection"])
        self.perturbation.load_state_dict(state["perturbation"])
        self.estimator.load_state_dict(state["estimator"])
        self.update.load_state_dict(state["update"])
