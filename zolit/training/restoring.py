"""Checks that a checkpoint fits the run that loads it, before Lightning restores anything from it."""

from __future__ import annotations

import traceback
from collections.abc import Mapping

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from zolit.errors import UserError
from zolit.models.finite import first_not_finite
from zolit.optim.optimizer import ZerothOrder
from zolit.reason import reason


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
    if missing or surplus:
        example = f"it has no {min(missing)}" if missing else f"this run has no {min(surplus)}"
        raise UserError(
            f"ckpt_path: the checkpoint is of another model or another model.tuning: {example} ({len(missing)} weights"
            f" are missing, {len(surplus)} are too many)"
        )
    if others:
        name = min(others)
        raise UserError(
            f"ckpt_path: the checkpoint is of another model: {name} has the shape {tuple(found[name].shape)} instead of"
            f" {tuple(own[name].shape)}, and {len(others)} weights in all differ in shape"
        )
    if damaged := first_not_finite(found.items()):
        raise UserError(
            f"ckpt_path: the weight {damaged} of the checkpoint is not finite; take an earlier checkpoint, and lower lr"
        )


def take_new_rate(optimizer: ZerothOrder, is_scheduled: bool) -> None:
    """Takes the learning rate of this run's options if it differs from that of the resumed run. Called before a fit.

    torch restores the learning rate with the state of an optimizer. A user who resumes with another rate means it.

    Args:
        optimizer: The optimizer, with the loaded state.
        is_scheduled: Whether a scheduler sets the rate; its state then goes on, with a warning.
    """
    wanted, resumed = optimizer.lr, optimizer.resumed_lr
    if resumed in (None, wanted) or isinstance(wanted, str):  # auto goes on with the rate that the run has
        return
    if is_scheduled:
        rank_zero_warn(
            f"model.optimizer.lr: the schedule of the checkpoint goes on from {resumed}; {wanted} has no effect"
        )
        return
    optimizer.needs_rate = False
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
    return UserError(
        f"ckpt_path: {path} does not fit this run ({reason(error)}); go on with the options and the "
        "version of zolit that wrote it, or begin a new run"
    )
