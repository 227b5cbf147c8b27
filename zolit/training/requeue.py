"""Defers signals until a checkpoint that their handlers save resumes exactly.

Lightning's automatic requeue under SLURM saves a checkpoint in a signal handler. A checkpoint resumes exactly if it is
saved after a batch's last hook, or during a validation. At other times a resumed run would skip a batch that was
fetched but not trained on, or repeat one that was trained on but not yet counted.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from zolit.optim.signals import deferred_signals


class SignalSafeModule(LightningModule):
    """A LightningModule that runs signal handlers during a fit only where a checkpoint resumes exactly.

    The hooks belong to the module because Lightning calls the module's hooks after those of all callbacks.
    """

    def __init__(self) -> None:
        super().__init__()
        self._signals = ExitStack()

    @override
    def configure_callbacks(self) -> list[Callback]:
        """Adds the callback that runs deferred handlers after an exception."""
        # Lightning sets ``callbacks`` without declaring it, and warns if it replaces one by another of the same type.
        known = self.trainer.callbacks  # type: ignore[attr-defined]  # set, not declared
        return [] if any(type(callback) is _SignalsAfterException for callback in known) else [_SignalsAfterException()]

    @override
    def on_train_start(self) -> None:
        """Defers signals from the start of training."""
        self._signals.enter_context(deferred_signals())

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Runs the handlers of deferred signals after a batch, and defers signals again."""
        self._signals.close()
        self._signals.enter_context(deferred_signals())

    @override
    def on_validation_start(self) -> None:
        """Runs the handlers of deferred signals, and defers none during a validation."""
        self._signals.close()

    @override
    def on_validation_end(self) -> None:
        """Defers signals again after a validation of a fit."""
        if self.validates_a_fit:
            self._signals.enter_context(deferred_signals())

    @override
    def on_train_end(self) -> None:
        """Runs the handlers of deferred signals at the end of training."""
        self._signals.close()

    @property
    def validates_a_fit(self) -> bool:
        """Whether the current validation belongs to a fit and is not the sanity check before it."""
        return self.trainer.state.fn == "fit" and not self.trainer.sanity_checking


class _SignalsAfterException(Callback):
    """Runs the deferred signal handlers when a fit ends with an exception. Lightning has no such hook for modules."""

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(pl_module, SignalSafeModule):
            pl_module._signals.close()
