"""A run that is saved by a signal's handler resumes as if nothing had happened, to the bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from zolit_callbacks import BudgetLogger

from tests.conftest import Fit
from tests.helpers.signals import TERM, USR1, Recorder, restored_handlers
from tests.helpers.tiny import same, weights_of
from tests.training.test_resume import assert_same
from zolit.data.datamodule import PromptedData
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


@pytest.fixture
def requeued(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Sets the environment of a SLURM job; returns the file that records the calls of ``scontrol``."""
    asked, command = tmp_path / "asked", tmp_path / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\necho $@ >> {asked}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"NTASKS": "1", "JOB_ID": "17", "JOB_NAME": "test", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return asked


@pytest.mark.parametrize(
    ("owner", "method", "call", "step", "saved_after"),
    [
        (ZerothOrderModule, "_losses", 2, 0, 1),
        (PromptedData, "on_before_batch_transfer", 1, 5, 6),
        (BudgetLogger, "on_train_batch_end", 1, 6, 6),
        (BudgetLogger, "on_train_epoch_end", 1, 6, 7),
        (ZerothOrderModule, "validation_step", 2, 6, 6),
    ],
)
def test_a_requeued_run_equals_an_uninterrupted_one(
    zolit: Fit,
    requeued: Path,
    tmp_path: Path,
    owner: type,
    method: str,
    call: int,
    step: int,
    saved_after: int,
) -> None:
    whole = zolit("fit", *SHORT, f"--trainer.default_root_dir={tmp_path / 'whole'}")
    assert not requeued.exists()
    job = ("fit", *SHORT, f"--trainer.default_root_dir={tmp_path / 'job'}")
    with pytest.MonkeyPatch.context() as patches:
        raise_in(patches, owner, method, call=call, step=step)
        zolit(*job)
    assert requeued.read_text() == "requeue 17\n"
    saved = torch.load(tmp_path / "job" / "hpc_ckpt_1.ckpt", weights_only=True)
    assert saved["global_step"] == saved_after
    again = zolit(*job)  # finds the checkpoint without an option, as a requeued job does
    assert again.trainer.ckpt_path == str(tmp_path / "job" / "hpc_ckpt_1.ckpt")
    assert again.trainer.global_step == 8
    assert same(weights_of(again.model), weights_of(whole.model))
    assert_same(again.model.zo.state_dict()["zo"], whole.model.zo.state_dict()["zo"])


def test_the_end_of_a_requeued_run_is_validated_with_its_last_weights(
    zolit: Fit, requeued: Path, tmp_path: Path
) -> None:
    """Lightning would load the requeue checkpoint again, over weights that were not validated yet."""
    job = ("fit", *SHORT, "--trainer.max_steps=7", f"--trainer.default_root_dir={tmp_path / 'job'}")
    with pytest.MonkeyPatch.context() as patches:
        raise_in(patches, ZerothOrderModule, "_losses", call=2, step=0)
        zolit(*job)
    assert requeued.exists()
    again = zolit(*job)
    last = torch.load(again.trainer.checkpoint_callback.last_model_path, weights_only=True)
    assert last["global_step"] == 7
    assert all(torch.equal(value, last["state_dict"][name]) for name, value in again.model.state_dict().items())


def test_sigterm_stops_a_run_after_the_step(zolit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    signal.signal(TERM, lambda *_: seen.append(weights_of(trainers[0].lightning_module)))
    short = zolit("fit", *SHORT, "--trainer.max_steps=1")
    trainers = raise_in(monkeypatch, ZerothOrderModule, "_losses", call=2, signum=TERM)
    with pytest.raises(SIGTERMException):
        zolit("fit", *SHORT)
    (weights,) = seen
    assert trainers[0].global_step == 1
    assert same(weights, weights_of(short.model))


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
