"""A handler never sees weights amid a step, and what it saves resumes as if nothing had happened, to the bit."""

from __future__ import annotations

import copy
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from zolit_callbacks import BudgetLogger

from tests.conftest import Fit
from tests.test_resume import assert_same
from tests.tiny import layered, regression, same, weights_of
from zolit import MeZO
from zolit.module import ZerothOrderModule
from zolit.signals import deferred_signals
from zolit.tasks import PromptedData

USR1, USR2, INT, TERM = signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGTERM


class Ear:
    """A handler that writes down what it hears."""

    def __init__(self, *signums: int) -> None:
        self.heard: list[int] = []
        for signum in signums:
            signal.signal(signum, self)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        assert frame is not None
        assert signal.getsignal(signum) is self  # handlers are back before the first is called
        self.heard.append(signum)

    def __deepcopy__(self, memo: object) -> None:
        raise AssertionError


@pytest.fixture(autouse=True)
def clean_handlers() -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum in (USR1, USR2, INT, TERM)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def test_signals_wait_and_are_handed_over_once_in_their_order() -> None:
    ear = Ear(USR1, USR2)
    with deferred_signals():
        for signum in (USR2, USR1, USR2):
            signal.raise_signal(signum)
        assert ear.heard == []
    assert ear.heard == [USR2, USR1]
    assert signal.getsignal(USR1) is signal.getsignal(USR2) is ear
    signal.raise_signal(USR1)
    assert ear.heard == [USR2, USR1, USR1]


def test_the_outermost_hands_over() -> None:
    ear = Ear(USR1, USR2)
    with deferred_signals():
        with deferred_signals(), deferred_signals(interrupts=True):
            signal.raise_signal(USR1)
        signal.raise_signal(USR2)
        assert ear.heard == []
    assert ear.heard == [USR1, USR2]


def leave_by_an_error(*signums: int) -> None:
    with deferred_signals():
        for signum in signums:
            signal.raise_signal(signum)
        raise LookupError


def test_an_exception_loses_no_signal() -> None:
    ear = Ear(USR1)
    with pytest.raises(LookupError):
        leave_by_an_error(USR1)
    assert ear.heard == [USR1]
    assert signal.getsignal(USR1) is ear


def test_a_handler_that_raises_swallows_no_other() -> None:
    ear = Ear(USR1, INT)
    signal.signal(USR2, lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError) as caught:
        leave_by_an_error(USR2, USR1, INT)
    assert isinstance(caught.value.__context__, LookupError)
    assert ear.heard == [USR1, INT]


def interrupted(interrupts: bool, presses: int = 1) -> list[str]:
    """What is reached of a context in which Ctrl-C is pressed."""
    reached = []
    try:
        with deferred_signals(interrupts):
            for _ in range(presses):
                signal.raise_signal(INT)
            reached.append("the end")
        reached.append("beyond")
    except KeyboardInterrupt:
        reached.append("raised")
    return reached


def test_keyboard_interrupts_wait_where_asked_and_once() -> None:
    signal.signal(INT, signal.default_int_handler)
    assert interrupted(False) == ["raised"]
    assert interrupted(True) == ["the end", "raised"]
    assert interrupted(True, presses=2) == ["raised"]
    assert signal.getsignal(INT) is signal.default_int_handler


def test_an_inner_context_may_add_interrupts() -> None:
    signal.signal(INT, signal.default_int_handler)
    ear = Ear(USR1)
    with deferred_signals():
        signal.raise_signal(USR1)
        assert interrupted(True) == ["the end", "raised"]
        assert ear.heard == []
    assert ear.heard == [USR1]


def test_a_handler_of_the_users_for_ctrl_c_hears_the_second_at_once() -> None:
    ear: list[int] = []
    signal.signal(INT, lambda signum, _: ear.append(signum))
    with deferred_signals(), deferred_signals(interrupts=True):
        signal.raise_signal(INT)
        assert ear == []
        signal.raise_signal(INT)
        assert ear == [INT]
    assert ear == [INT, INT]


def test_a_handler_that_is_installed_meanwhile_stays_and_may_call_the_one_before() -> None:
    ear: list[str] = []
    signal.signal(USR1, lambda *_: ear.append("old"))
    with deferred_signals():
        before = signal.getsignal(USR1)
        assert callable(before)

        def new(signum: int, frame: FrameType | None) -> None:
            ear.append("new")
            before(signum, frame)

        signal.signal(USR1, new)
    assert signal.getsignal(USR1) is new
    signal.raise_signal(USR1)
    assert ear == ["new", "old"]
    with deferred_signals():
        signal.raise_signal(USR1)
        assert ear == ["new", "old"]
    assert ear == ["new", "old", "new", "old"]
    signal.signal(USR1, before)  # by somebody who believes to put things back
    with deferred_signals():
        signal.raise_signal(USR1)
        assert len(ear) == 4
    assert ear[4:] == ["old"]


def test_what_python_does_not_handle_is_left_alone() -> None:
    signal.signal(USR1, signal.SIG_IGN)
    signal.signal(USR2, signal.SIG_DFL)
    with deferred_signals():
        assert signal.getsignal(USR1) is signal.SIG_IGN
        assert signal.getsignal(USR2) is signal.SIG_DFL


def test_a_copy_takes_no_handlers_along() -> None:
    ear = Ear(USR1)
    with ExitStack() as stack:
        stack.enter_context(deferred_signals())
        signal.raise_signal(USR1)
        copy.deepcopy(stack).close()
        assert ear.heard == []
    assert ear.heard == [USR1]


def test_does_nothing_in_another_thread() -> None:
    ear = Ear(USR1)
    found = []

    def work() -> None:
        with deferred_signals(interrupts=True):
            found.append(signal.getsignal(USR1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [ear]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_handler_sees_the_weights_between_two_steps(dtype: torch.dtype) -> None:
    model = layered(dtype)
    optimizer = MeZO(model, lr=1e-2, probing="in_place")
    losses = regression(model)
    seen = []
    signal.signal(USR1, lambda *_: seen.append((weights_of(model), optimizer.state_dict()["zo"]["steps"])))

    def closure() -> Tensor:
        signal.raise_signal(USR1)
        return losses()

    for step in range(3):
        optimizer.step(closure)
        (weights, steps) = seen.pop()
        assert seen == []
        assert same(weights, weights_of(model))
        assert steps == step + 1


def test_ctrl_c_does_not_cut_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(INT, signal.default_int_handler)
    models = layered(), layered()
    whole, cut = (MeZO(model, lr=1e-2, momentum=0.9, probing="in_place") for model in models)
    apply = cut.update.apply

    def apply_interrupted(*args: object) -> None:
        signal.raise_signal(INT)
        apply(*args)

    monkeypatch.setattr(cut.update, "apply", apply_interrupted)
    whole.step(regression(models[0]))
    with pytest.raises(KeyboardInterrupt):
        cut.step(regression(models[1]))
    assert same(weights_of(models[0]), weights_of(models[1]))
    assert_same(cut.state_dict()["zo"], whole.state_dict()["zo"])


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


def raise_in(
    monkeypatch: pytest.MonkeyPatch, owner: type, method: str, *, call: int = 1, step: int = 0, signum: int = USR1
) -> list[Trainer]:
    """Has a method raise a signal in the given one of its calls after so many steps; returns where the trainer goes."""
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
    """Makes this a job of SLURM's; returns the file with what was asked of ``scontrol``."""
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
        (ZerothOrderModule, "_objective_of", 2, 0, 1),
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
    again = zolit(*job)  # finds the checkpoint by itself, as a requeued job does
    assert again.trainer.ckpt_path == str(tmp_path / "job" / "hpc_ckpt_1.ckpt")
    assert again.trainer.global_step == 8
    assert same(weights_of(again.model), weights_of(whole.model))
    assert_same(again.model.zo.state_dict()["zo"], whole.model.zo.state_dict()["zo"])


def test_the_end_of_a_requeued_run_is_validated_with_its_last_weights(
    zolit: Fit, requeued: Path, tmp_path: Path
) -> None:
    """Lightning would load the requeue checkpoint once more, over weights that no validation has seen yet."""
    job = ("fit", *SHORT, "--trainer.max_steps=7", f"--trainer.default_root_dir={tmp_path / 'job'}")
    with pytest.MonkeyPatch.context() as patches:
        raise_in(patches, ZerothOrderModule, "_objective_of", call=2, step=0)
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
    trainers = raise_in(monkeypatch, ZerothOrderModule, "_objective_of", call=2, signum=TERM)
    with pytest.raises(SIGTERMException):
        zolit("fit", *SHORT)
    (weights,) = seen
    assert trainers[0].global_step == 1
    assert same(weights, weights_of(short.model))


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (PromptedData, "on_before_batch_transfer"),
        (ZerothOrderModule, "_objective_of"),
        (BudgetLogger, "on_train_batch_end"),
    ],
)
def test_a_run_that_fails_loses_no_signal(
    zolit: Fit, monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    ear = Ear(USR1)

    def fail(*_: object) -> None:
        signal.raise_signal(USR1)
        assert ear.heard == []
        raise LookupError

    monkeypatch.setattr(owner, method, fail)
    with pytest.raises(LookupError):
        zolit("fit", *SHORT)
    assert ear.heard == [USR1]


def test_a_run_that_ends_loses_no_signal(
    zolit: Fit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ear = Ear(USR1)
    raise_in(monkeypatch, BudgetLogger, "on_train_end", step=8)
    cli = zolit("fit", *SHORT)
    assert ear.heard == [USR1]
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    assert "will override" not in caplog.text
