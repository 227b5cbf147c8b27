"""Corrects the state of Lightning's loops, so that a resumed run goes on as if nothing had happened.

Lightning (2.6) infers from its counters at which moment a checkpoint was saved. It does not know all moments: it would
continue a validation with the batches that were left, leave out a validation that follows a step, or log at steps that
are one too high or too low.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

_EPOCH_LOOP = "epoch_loop."
_BEGUN = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
"""Lightning takes these counts of batches for an interrupted evaluation, which it then begins anew."""


def make_resumable(checkpoint: dict[str, Any], trainer: Trainer, validation_is_pending: bool) -> None:
    """Corrects the state of the loops in a checkpoint. Called by the module each time that a checkpoint is made.

    - Before the first step, the state is removed: the resumed run begins with the check of the validation data.
    - During a validation, the resumed run repeats the whole validation.
    - After a step whose validation is due, the resumed run makes this validation first.

    Args:
        checkpoint: The checkpoint.
        trainer: The trainer.
        validation_is_pending: Whether a validation of the fit has begun, and callbacks do not know its result yet.
    """
    if trainer.state.fn != "fit":
        return  # saved after the fit, when all loops have ended
    if trainer.global_step == 0:
        del checkpoint["loops"]
        return
    loop = trainer.fit_loop.epoch_loop
    state = checkpoint["loops"]["fit_loop"]
    batches = state[f"{_EPOCH_LOOP}batch_progress"]
    in_batch = batches["current"]["completed"] < batches["current"]["ready"]
    fetcher = trainer.fit_loop._data_fetcher
    is_due = fetcher is not None and loop._should_check_val_fx(fetcher)
    validation = state[f"{_EPOCH_LOOP}val_loop.batch_progress"]
    if validation_is_pending or (in_batch and is_due):
        if in_batch:
            for counts in (batches["current"], batches["total"]):
                counts["completed"] += 1
        validation |= {"current": dict(_BEGUN), "total": dict(_BEGUN), "is_last_batch": False}
    else:  # after a validation that was begun anew, the totals would look like another interruption
        validation["total"] = dict.fromkeys(_BEGUN, validation["current"]["completed"])


def set_logged_step(trainer: Trainer) -> None:
    """Sets the step at which Lightning logs to the index of the last or current step, from 0.

    Called before each batch of a fit and before each validation.
    """
    steps = trainer.global_step
    trainer.fit_loop.epoch_loop._batches_that_stepped = steps if trainer.training else max(steps - 1, 0)
