"""A handler never runs during a step: it sees the weights between two steps."""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from types import FrameType

import pytest
import torch
from torch import Tensor

from tests.helpers.runs import assert_same
from tests.helpers.signals import INT, USR1, USR2, Recorder, restored_handlers
from tests.helpers.tiny import layered, regression, same, weights_of
from zolit import MeZO
from zolit.optim.signals import deferred_signals


@pytest.fixture(autouse=True)
def clean_handlers() -> Iterator[None]:
    with restored_handlers():
        yield


def test_handlers_of_deferred_signals_are_called_once_in_order() -> None:
    recorder = Recorder(USR1, USR2)
    with deferred_signals():
        for signum in (USR2, USR1, USR2):
            signal.raise_signal(signum)
        assert recorder.received == []
    assert recorder.received == [USR2, USR1]
    assert signal.getsignal(USR1) is signal.getsignal(USR2) is recorder
    signal.raise_signal(USR1)
    assert recorder.received == [USR2, USR1, USR1]


def test_the_outermost_context_calls_the_handlers() -> None:
    recorder = Recorder(USR1, USR2)
    with deferred_signals():
        with deferred_signals(), deferred_signals(interrupts=True):
            signal.raise_signal(USR1)
        signal.raise_signal(USR2)
        assert recorder.received == []
    assert recorder.received == [USR1, USR2]


def leave_by_an_error(*signums: int) -> None:
    with deferred_signals():
        for signum in signums:
            signal.raise_signal(signum)
        raise LookupError


def test_an_exception_loses_no_signal() -> None:
    recorder = Recorder(USR1)
    with pytest.raises(LookupError):
        leave_by_an_error(USR1)
    assert recorder.received == [USR1]
    assert signal.getsignal(USR1) is recorder


def test_a_handler_that_raises_swallows_no_other() -> None:
    recorder = Recorder(USR1, INT)
    signal.signal(USR2, lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError) as caught:
        leave_by_an_error(USR2, USR1, INT)
    assert isinstance(caught.value.__context__, LookupError)
    assert recorder.received == [USR1, INT]


def interrupted(interrupts: bool, presses: int = 1) -> list[str]:
    """Presses Ctrl-C within a context, and returns the names of the points that the code reaches."""
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


def test_keyboard_interrupts_are_deferred_on_request_and_once() -> None:
    signal.signal(INT, signal.default_int_handler)
    assert interrupted(False) == ["raised"]
    assert interrupted(True) == ["the end", "raised"]
    assert interrupted(True, presses=2) == ["raised"]
    assert signal.getsignal(INT) is signal.default_int_handler


def test_an_inner_context_may_add_interrupts() -> None:
    signal.signal(INT, signal.default_int_handler)
    recorder = Recorder(USR1)
    with deferred_signals():
        signal.raise_signal(USR1)
        assert interrupted(True) == ["the end", "raised"]
        assert recorder.received == []
    assert recorder.received == [USR1]


def test_a_users_handler_of_ctrl_c_receives_the_second_at_once() -> None:
    received: list[int] = []
    signal.signal(INT, lambda signum, _: received.append(signum))
    with deferred_signals(), deferred_signals(interrupts=True):
        signal.raise_signal(INT)
        assert received == []
        signal.raise_signal(INT)
        assert received == [INT]
    assert received == [INT, INT]


def test_a_handler_that_is_installed_meanwhile_stays_and_may_call_its_predecessor() -> None:
    called: list[str] = []
    signal.signal(USR1, lambda *_: called.append("old"))
    with deferred_signals():
        before = signal.getsignal(USR1)
        assert callable(before)

        def new(signum: int, frame: FrameType | None) -> None:
            called.append("new")
            before(signum, frame)

        signal.signal(USR1, new)
    assert signal.getsignal(USR1) is new
    signal.raise_signal(USR1)
    assert called == ["new", "old"]
    with deferred_signals():
        signal.raise_signal(USR1)
        assert called == ["new", "old"]
    assert called == ["new", "old", "new", "old"]
    signal.signal(USR1, before)  # code that restores what it found during the step
    with deferred_signals():
        signal.raise_signal(USR1)
        assert len(called) == 4
    assert called[4:] == ["old"]


def test_signals_without_a_python_handler_are_not_changed() -> None:
    signal.signal(USR1, signal.SIG_IGN)
    signal.signal(USR2, signal.SIG_DFL)
    with deferred_signals():
        assert signal.getsignal(USR1) is signal.SIG_IGN
        assert signal.getsignal(USR2) is signal.SIG_DFL


def test_a_copy_has_no_handlers() -> None:
    recorder = Recorder(USR1)
    with ExitStack() as stack:
        stack.enter_context(deferred_signals())
        signal.raise_signal(USR1)
        copy.deepcopy(stack).close()
        assert recorder.received == []
    assert recorder.received == [USR1]


def test_does_nothing_in_another_thread() -> None:
    recorder = Recorder(USR1)
    found = []

    def work() -> None:
        with deferred_signals(interrupts=True):
            found.append(signal.getsignal(USR1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [recorder]


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


def test_ctrl_c_does_not_interrupt_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
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
