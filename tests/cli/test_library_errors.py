"""What libraries raise becomes a sentence once: errors that have one already keep it."""

from __future__ import annotations

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.call import _call_callback_hooks
from typing_extensions import override

from zolit.cli.library_errors import explained, from_callback
from zolit.errors import DivergedError, UserError


class Failing(Callback):
    """Raises an error at the start of a fit."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise self._error


def raised_in(callback: Callback) -> Exception:
    trainer = Trainer(callbacks=[callback], logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.strategy._lightning_module = LightningModule()
    with pytest.raises(Exception) as caught:  # noqa: PT011  # of any kind
        _call_callback_hooks(trainer, "on_fit_start")
    return caught.value


class OfLightning(Failing):
    """Looks like a callback of Lightning."""


OfLightning.__module__ = EarlyStopping.__module__


@pytest.mark.parametrize("error", [OSError(28, "No space left"), DivergedError("the weight a is"), UserError("lr: no")])
def test_errors_with_a_sentence_of_their_own(error: Exception) -> None:
    assert from_callback(raised_in(OfLightning(error))) is None


def test_errors_of_callbacks_of_lightning_alone() -> None:
    found = from_callback(raised_in(OfLightning(LookupError("no gradients"))))
    assert str(found) == "trainer.callbacks: OfLightning cannot work here (LookupError: no gradients)"
    assert from_callback(raised_in(Failing(LookupError("mine")))) is None


def test_the_first_cause_is_named() -> None:
    def fail(cause: Exception) -> None:
        with explained("an option"):
            raise ValueError("class_path='a.B', init_args=...") from cause

    with pytest.raises(UserError, match=r"^a\.B: KeyError: 'c'$"):
        fail(KeyError("c"))
    with pytest.raises(UserError, match=r"^rank: is 0$"):
        fail(UserError("rank: is 0"))
    with pytest.raises(PermissionError):
        fail(PermissionError(13, "Permission denied"))
