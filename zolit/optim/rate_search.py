"""Chooses a learning rate from some ninety forwards on a few batches, before the first step: ``lr: auto``.

Most of what a zeroth-order step does is noise: each step moves the weights along directions that were drawn at random.
After N steps the noise alone has moved every weight by about r = η·a·√N, where a² is the mean of Σᵢaᵢ², the squared
coefficients of a step. Let r* be the length of a move along the estimate of a step that changes the loss by ``RISE``.
It limits η twice:

- **The run.** Noise of r changes the loss by ``RISE``·(r / r*)², which may be ``NOISE``. So
  η·a·√N ≤ r*·√(``NOISE`` / ``RISE``).
- **A step.** It costs η²·a²·c / 2, where c = 2·``RISE`` / r*² is the curvature along the estimate. It gains η·g, with
  g = Σᵢaᵢ·Δᵢ. So η ≤ ``SHARE``·g / (a²·c). This decides in short runs.

The rule is our own. ``docs/learning-rate.md`` has its derivation and what it was tested on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from zolit.errors import UserError, require
from zolit.optim.base_point import BasePoint, Closure, NotFinite
from zolit.optim.blocks import BlockSample
from zolit.optim.estimators.base import Estimate
from zolit.optim.evaluation import Evaluation
from zolit.optim.optimizer import ZerothOrder
from zolit.optim.perturbation.directions import Directions
from zolit.optim.randomness import Step, key_of
from zolit.optim.signals import deferred_signals

RISE = 0.1
"""Nats by which the loss changes at the radius that is measured."""
NOISE = 0.05
"""Nats by which the noise of a whole run may change the loss."""
SHARE = 0.07
"""Share of the step at which noise costs half of what a step gains. Curvature grows while a run goes on."""

_PROBES = 16
_DRAWS = 8
_TRIALS = 8
_FIRST_RADIUS = 4e-3
_PURPOSE = key_of("learning rate")


@dataclass(frozen=True, slots=True)
class Rate:
    """A chosen learning rate, and what was measured.

    Attributes:
        lr: η.
        steps: N, the length of the run. With a schedule, the sum of its squared factors.
        coefficient: a, the root mean square of the coefficients of a step.
        radius: r*, the length of a move along an estimate that changes the loss by ``RISE``.
        forwards: Number of forwards that the choice took.
    """

    lr: float
    steps: float
    coefficient: float
    radius: float
    forwards: int

    def __str__(self) -> str:
        return (
            f"lr: auto chose {self.lr:.2g} for {self.steps:.0f} steps after {self.forwards} forwards"
            f" (coefficient of a step: {self.coefficient:.3g}; radius at which a move changes the loss by {RISE}:"
            f" {self.radius:.2g})"
        )


@torch.no_grad()
def choose_rate(
    optimizer: ZerothOrder,
    closures: Sequence[Closure],
    steps: float,
    examples: Sequence[Sequence[int]] = (),
    repeats_batch: bool = False,
) -> Rate:
    """Measures a model and a method on a few batches, and sets the learning rate. Called before the first step.

    The weights and the state of all stages keep their values. On several processes all choose the same rate.

    Args:
        optimizer: An optimizer with ``lr="auto"``.
        closures: The closure of each batch; see ``ZerothOrder.step``. Gradients differ much between batches, so give
            eight or more.
        steps: N, the length of the run. With a schedule of the rate, the sum of its squared factors.
        examples: The ids of the rows of each batch, for per-example directions.
        repeats_batch: See ``ZerothOrder.step``.

    Returns:
        The rate. The present rate of each group, which a schedule may have lowered, is multiplied by it.

    Raises:
        UserError: If a loss is not finite, or the losses do not say anything about a rate, or the method moves weights
            by Adam.
    """
    reach = optimizer.update.reach
    if reach is None:
        raise UserError("lr: auto is for methods that move weights by SGD along their estimate; set a number")
    saved = {name: deepcopy(stage.state_dict()) for name, stage in optimizer.stages.items()}
    with deferred_signals(), deferred_signals(interrupts=True) as interrupts:  # as in a step
        acting = [interrupts.acting_during(closure) for closure in closures]
        search = _Search(optimizer, acting, examples, repeats_batch)
        try:
            energy, gain = search.of_a_step()
            radius = search.radius()
        except NotFinite:
            raise UserError("lr: auto found a loss that is not finite; check the data and eps") from None
        finally:
            for name, stage in optimizer.stages.items():
                stage.load_state_dict(saved[name])
    of_run = radius * math.sqrt(NOISE / RISE / (energy * steps))
    of_step = SHARE * gain * radius**2 / (2.0 * RISE * energy)
    lr = min(of_run, of_step) / reach
    for group in optimizer.param_groups:
        group.update({key: lr * group[key] for key in ("lr", "initial_lr") if key in group})
    optimizer.needs_rate = False
    optimizer.counts["forwards"] += search.forwards
    return Rate(lr, steps, math.sqrt(energy), radius, search.forwards)


class _Search:
    """Evaluates batches with the optimizer's stages. Its random numbers are those of no step of the run.

    Attributes:
        forwards: Number of forwards so far.
    """

    def __init__(
        self,
        optimizer: ZerothOrder,
        closures: Sequence[Closure],
        examples: Sequence[Sequence[int]],
        repeats_batch: bool,
    ) -> None:
        self._optimizer = optimizer
        self._closures = closures
        self._examples = examples
        self._repeats_batch = repeats_batch
        self._seed = Step(optimizer.seed, 0).key(_PURPOSE)
        self._moves: list[Tensor] = []
        self.forwards = 0

    def _base(self, step: Step) -> BasePoint:
        closure = self._closures[step.index % len(self._closures)]
        return BasePoint(self._optimizer.model, closure, self._optimizer.collectives, step, 0.0)

    def of_a_step(self) -> tuple[float, float]:
        """Returns the means of Σᵢaᵢ² and of Σᵢaᵢ·Δᵢ over a few steps that do not move the weights."""
        energy = gain = 0.0
        for index in range(_PROBES):
            found, correction = self._estimate(Step(self._seed, index))
            self._moves.append(found.coefficients.double())
            energy += correction * float(found.coefficients.double().square().sum()) / _PROBES
            gain += float((found.coefficients * found.derivatives).double().sum()) / _PROBES
        require(gain > 0.0, "lr: auto found no difference between the losses of any two probes; set lr, and raise eps")
        return energy, gain

    def _estimate(self, step: Step) -> tuple[Estimate, float]:
        """Returns the estimate of a step, and the mean square of the corrections with which weights would move."""
        optimizer, base = self._optimizer, self._base(step)
        sample = self._begin(step, base)
        estimate = optimizer.estimator.estimate(self._evaluation(base, sample, step), optimizer.eps)
        self.forwards += len(base.losses)
        sizes = torch.tensor([block.numel for block in sample.blocks], dtype=torch.float64) * sample.chosen
        return estimate, float((sizes * sample.corrections.square()).sum() / sizes.sum().clamp(min=1.0))

    def _begin(self, step: Step, base: BasePoint) -> BlockSample:
        """Begins a step as the optimizer does."""
        optimizer = self._optimizer
        optimizer.selection.prepare(base)
        optimizer.perturbation.prepare(base)
        sample = optimizer.selection.select(step)
        optimizer.perturbation.begin_step(step)
        return sample

    def _evaluation(self, base: BasePoint, sample: BlockSample, step: Step) -> Evaluation:
        """Returns the evaluation along the directions of a step."""
        optimizer = self._optimizer
        ids: Sequence[int] = range(optimizer.estimator.num_directions)
        if optimizer.per_example:
            ids = self._examples[step.index % len(self._closures)] if self._examples else ()
        directions = Directions(sample, optimizer.perturbation, step, ids)
        directions.prefetch()
        return Evaluation(base, optimizer.prober, directions, optimizer.per_example, self._repeats_batch)

    def radius(self) -> float:
        """Returns r*: the length of a move along the estimate of a step that changes the loss by RISE.

        It is in units of a direction, as the rate times a coefficient is. The steps are the first of ``of_a_step``.
        With many directions, an estimate is nearly the gradient of its batch, along which the loss bends more than
        along noise. The blocks of the step move, and each draw has its own batch. With per-example directions, each
        example moves along its own, in which its loss bends most.
        """
        steps = [Step(self._seed, index) for index in range(_DRAWS)]
        bases = [self._base(step) for step in steps]
        low, high, radius = 0.0, math.inf, _FIRST_RADIUS
        for _ in range(_TRIALS):
            rise = 0.0
            for step, base, move in zip(steps, bases, self._moves[:_DRAWS], strict=True):
                try:
                    evaluation = self._evaluation(base, self._begin(step, base), step)
                    losses = evaluation(radius * self._both_ways(move))
                except NotFinite:
                    rise = math.inf
                else:
                    # Noise can lower the loss of a model that is sure of the wrong answers. This counts as a rise does.
                    rise += float((losses[1:].mean(0) - losses[0]).abs().mean()) / _DRAWS
            low, high = (radius, high) if rise < RISE else (low, radius)
            as_parabola = radius * min(max(math.sqrt(RISE / max(rise, 1e-9)), 1.0 / 8.0), 8.0)
            if RISE / 2.0 < rise < RISE * 2.0:
                self.forwards += sum(len(base.losses) for base in bases)
                return min(max(as_parabola, low), high)
            # A loss that bends upwards would make the parabola's radius jump to and fro.
            radius = math.sqrt(low * high) if low > 0.0 and high < math.inf else as_parabola
        raise UserError(f"lr: auto found no move of the weights that changes the loss by {RISE}; set lr")

    def _both_ways(self, coefficients: Tensor) -> Tensor:
        """Returns no move, a move of length 1 along an estimate, and its opposite; shape (3, directions).

        Where no probe changed the loss, as can happen in 16 bits, the move is along the sum of the directions.
        """
        if self._optimizer.per_example:
            coefficients = torch.ones(1, dtype=torch.float64)  # the length along the direction of each example
        elif not coefficients.any():
            coefficients = torch.ones_like(coefficients)
        move = coefficients / coefficients.norm()
        return torch.stack([torch.zeros_like(move), move, -move])
