"""Signals are handled where a run can be resumed, and none is lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import Trainer
from zolit_callbacks import BudgetLogger

from tests.conftest import Fit
from tests.helpers.signals import INT, TERM, USR1, Recorder, restored_handlers
from tests.helpers.tiny import same
from zolit.data.datamodule import PromptedData
from zolit.errors import Stopped
from zolit.training.module import ZerothOrderModule

SHORT = (
    "--model.optimizer=MeZO",
    "--model.optimizer.lr=1e-3",
    "--model.optimizer.momentum=0.5",
    "--model.optimizer.probing=in_place",
    "--data.train_examples=96",  # 6 batches an epoch
    "--trainer.max_steps=8",
    "--trainer.val_check_interval=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.limit_val_batches=2",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.callbacks=zolit_callbacks.BudgetLogger",
)


@pytest.fixture(autouse=True)
def clean_handlers() -> Iterator[None]:
    with restored_handlers():
        yield


def raise_in(
    monkeypatch: pytest.MonkeyPatch, owner: type, method: str, *, call: int = 1, step: int = 0, signum: int = USR1
) -> list[Trainer]:
    """Patches a method to raise a signal in one of its calls after a step; returns a list that receives the trainer."""
    original = getattr(owner, method)
    trainers = []

    def raising(self: object, *args: object) -> object:
        trainer = self.trainer if hasattr(self, "trainer") else args[0]
        assert isinstance(trainer, Trainer)
        if trainer.global_step == step:
            trainers.append(trainer)
            if len(trainers) == call:
                signal.raise_signal(signum)
        return original(self, *args)

    monkeypatch.setattr(owner, method, raising)
    return trainers


@pytest.mark.parametrize("signum", [INT, TERM])
def test_a_signal_stops_a_run_after_the_step(zolit: Fit, monkeypatch: pytest.MonkeyPatch, signum: int) -> None:
    short = zolit("fit", *SHORT, "--trainer.max_steps=1")
    trainers = raise_in(monkeypatch, ZerothOrderModule, "_losses", call=2, signum=signum)
    with pytest.raises(Stopped) as stopped:
        zolit("fit", *SHORT)
    assert stopped.value.code == 128 + signum
    assert trainers[0].global_step == 1
    last = torch.load(trainers[0].checkpoint_callback.last_model_path, weights_only=True)
    assert same(last["state_dict"], short.model.state_dict())


def test_a_module_that_was_stopped_trains_again(zolit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        trainers = raise_in(patch, ZerothOrderModule, "_losses", call=2, signum=TERM)
        with pytest.raises(Stopped):
            zolit("fit", *SHORT)
    stopped = cast("Any", trainers[0])
    trainer = Trainer(max_steps=2, logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.fit(stopped.lightning_module, datamodule=stopped.datamodule)
    assert trainer.global_step == 2


def test_a_second_interrupt_stops_at_once(zolit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt_twice(*_: object) -> None:
        signal.raise_signal(INT)
        signal.raise_signal(INT)
        raise AssertionError

    monkeypatch.setattr(BudgetLogger, "on_train_batch_end", interrupt_twice)
    with pytest.raises(Stopped) as stopped:
        zolit("fit", *SHORT)
    assert not stopped.value.resumable


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (PromptedData, "on_before_batch_transfer"),
        (ZerothOrderModule, "_losses"),
        (BudgetLogger, "on_train_batch_end"),
    ],
)
def test_a_run_that_fails_loses_no_signal(
    zolit: Fit, monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    recorder = Recorder(USR1)

    def fail(*_: object) -> None:
        signal.raise_signal(USR1)
        assert recorder.received == []
        raise LookupError

    monkeypatch.setattr(owner, method, fail)
    with pytest.raises(LookupError):
        zolit("fit", *SHORT)
    assert recorder.received == [USR1]


def test_a_run_that_ends_loses_no_signal(
    zolit: Fit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(USR1)
    raise_in(monkeypatch, BudgetLogger, "on_train_end", step=8)
    cli = zolit("fit", *SHORT)
    assert recorder.received == [USR1]
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    assert "will override" not in caplog.text
