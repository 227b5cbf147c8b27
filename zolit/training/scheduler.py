"""The scheduler of the learning rate: made from the user's options, and stepped by the module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.cli import ReduceLROnPlateau
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau as TorchReduceLROnPlateau

from zolit.errors import UserError, require
from zolit.reason import reason


def make_scheduler(make: Callable[[Optimizer], Any], optimizer: Optimizer) -> dict[str, Any]:
    """Makes a scheduler, as Lightning's ``configure_optimizers`` returns it. Called once, before a fit.

    Raises:
        UserError: If the scheduler refuses its options, or has no metric to monitor.
    """
    with _explained():
        scheduler = make(optimizer)
    require(
        isinstance(scheduler, ReduceLROnPlateau) or not isinstance(scheduler, TorchReduceLROnPlateau),
        "model.lr_scheduler: torch's ReduceLROnPlateau has no metric to monitor; use "
        "lightning.pytorch.cli.ReduceLROnPlateau with monitor: val/loss",
    )
    return {"scheduler": scheduler, "interval": "step"}


def step_after_batch(scheduler: object) -> None:
    """Steps a scheduler that counts steps. Called after each training step with what ``lr_schedulers`` returns.

    Raises:
        UserError: If the scheduler cannot make a step with its options.
    """
    if isinstance(scheduler, LRScheduler) and not isinstance(scheduler, TorchReduceLROnPlateau):
        with _explained():
            scheduler.step()


def step_after_validation(scheduler: object, metrics: Mapping[str, Tensor]) -> None:
    """Steps a scheduler that watches a metric. Called after each validation of a fit.

    Args:
        scheduler: What ``lr_schedulers`` returns.
        metrics: What has been logged.

    Raises:
        UserError: If its metric is not logged.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        known = sorted(name for name in metrics if name.startswith("val/"))
        require(
            scheduler.monitor in metrics,
            f"model.lr_scheduler.monitor: {scheduler.monitor!r} is not logged; a validation logs {', '.join(known)}",
        )
        scheduler.step(metrics[scheduler.monitor])


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, ArithmeticError, LookupError) as error:  # of torch, for the value of an option
        raise UserError(f"model.lr_scheduler: torch refuses its options ({reason(error)})") from error
