"""Checks that a checkpoint fits the run that loads it, before Lightning restores anything from it."""

from __future__ import annotations

import traceback
from collections.abc import Mapping

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from zolit.errors import UserError, require
from zolit.models.finite import first_not_finite
from zolit.optim.optimizer import ZerothOrder


def check_weights(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Checks the weights of a checkpoint. Called by the module before they are loaded.

    Args:
        found: The weights in the checkpoint.
        own: The weights of the model.

    Raises:
        UserError: If the checkpoint is of another model or tuning, or has a weight that is NaN or infinite.
    """
    missing, surplus = own.keys() - found.keys(), found.keys() - own.keys()
    others = [name for name in own if name in found and found[name].shape != own[name].shape]
    require(
        not missing and not surplus,
        "ckpt_path: the checkpoint is of another model or another model.tuning: "
        + (f"it has no {min(missing)}" if missing else f"this run has no {min(surplus, default='')}")
        + f" ({len(missing)} weights are missing, {len(surplus)} are too many)",
    )
    require(
        not others,
        f"ckpt_path: the checkpoint is of another model: {min(others, default='')} has the shape "
        f"{[tuple(found[name].shape) for name in sorted(others)[:1]]}, {len(others)} weights differ in shape",
    )
    damaged = first_not_finite(found.items())
    require(
        damaged is None,
        f"ckpt_path: the weight {damaged} of the checkpoint is not finite; take an earlier checkpoint, and lower lr",
    )


def take_new_rate(optimizer: ZerothOrder, is_scheduled: bool) -> None:
    """Takes the learning rate of this run's options if it differs from that of the resumed run. Called before a fit.

    torch restores the learning rate with the state of an optimizer. A user who resumes with another rate means it.

    Args:
        optimizer: The optimizer, with the loaded state.
        is_scheduled: Whether a scheduler sets the rate; its state then goes on, with a warning.
    """
    wanted, resumed = optimizer.defaults["lr"], optimizer.resumed_lr
    if resumed in (None, wanted):
        return
    if is_scheduled:
        rank_zero_warn(
            f"model.optimizer.lr: the schedule of the checkpoint goes on from {resumed}; {wanted} has no effect"
        )
        return
    for group in optimizer.param_groups:
        group["lr"] = wanted


def explain_failure(error: Exception, path: object) -> UserError | None:
    """Returns one sentence about an exception that was raised while Lightning restored a checkpoint.

    A whole checkpoint of plain data can still have any content, on which any line can fail.

    Args:
        error: The exception.
        path: The checkpoint.

    Returns:
        The error for the user; None if the exception was raised at another time.
    """
    if isinstance(error, UserError):
        return None
    frames = traceback.extract_tb(error.__traceback__)
    if not any("checkpoint_connector" in frame.filename and "restore" in frame.name for frame in frames):
        return None
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"ckpt_path: {path} does not fit this run ({type(error).__name__}: {reason}); go on with the options and the "
        "version of zolit that wrote it, or begin a new run"
    )
