"""Chooses the learning rate of a fit on its first batches (``lr: auto``), for its length and its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from zolit.data.datamodule import PromptedData
from zolit.errors import require
from zolit.models.batches import Batch
from zolit.optim.base_point import Closure
from zolit.optim.optimizer import ZerothOrder
from zolit.optim.rate_search import choose_rate

MakeScheduler = Callable[[Optimizer], Any]
ClosureOf = Callable[[Batch], tuple[Closure, list[int] | None]]
_BATCHES = 8


def choose_rate_of_run(
    module: LightningModule, zo: ZerothOrder, make: MakeScheduler | None, closure_of: ClosureOf, batch: Batch
) -> None:
    """Chooses the rate, and says it in one line. Called before the first step of a fit, if ``zo.needs_rate``.

    Args:
        module: The module, in its first training step.
        zo: Its optimizer.
        make: Makes a scheduler as that of the run; None without one.
        closure_of: Returns the closure of a batch, and the ids of its rows for per-example directions.
        batch: The first batch, with which a data module of the user's own has to do.

    Raises:
        UserError: If the run has no end, or the losses do not say anything about a rate.
    """
    scheduler = module.lr_schedulers()
    if isinstance(scheduler, OneCycleLR | CyclicLR):  # their options are the rates
        zo.needs_rate = False
        return
    trainer = module.trainer
    steps = trainer.estimated_stepping_batches
    require(math.isfinite(steps), "model.optimizer.lr: auto needs the length of the run; set trainer.max_steps")
    data = getattr(trainer, "datamodule", None)
    batches = data.first_batches(_BATCHES) if isinstance(data, PromptedData) else [batch]
    closures, ids = zip(*(closure_of(trainer.strategy.batch_to_device(own)) for own in batches), strict=True)
    examples = [own for own in ids if own is not None]
    length = sum_of_squared_factors(make, int(steps))
    rate = choose_rate(zo, closures, length, examples, repeats_batch=not examples)
    for each in _with_inner(scheduler):
        each.base_lrs = [rate.lr * base for base in each.base_lrs]
    rank_zero_info(str(rate))


def sum_of_squared_factors(make: MakeScheduler | None, steps: int) -> float:
    """Returns Σ (ηₜ / η)² over a run: the noise of its steps adds up as squares."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make and make(optimizer)
    if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
        return steps
    total = 0.0
    for _ in range(steps):
        total += optimizer.param_groups[0]["lr"] ** 2
        optimizer.step()
        scheduler.step()
    return max(total, 1.0)


def _with_inner(scheduler: object) -> Iterator[LRScheduler]:
    """Returns a scheduler and those that it combines, as far as they know a base rate."""
    for inner in getattr(scheduler, "_schedulers", ()):
        yield from _with_inner(inner)
    if isinstance(scheduler, LRScheduler) and hasattr(scheduler, "base_lrs"):
        yield scheduler
