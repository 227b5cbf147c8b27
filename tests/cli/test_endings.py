"""The line that a stopped command prints: what is saved, and with which command to go on."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zolit.cli.endings import explain_stop, name_of, stoppable
from zolit.errors import Stopped

ARGS = ["fit", "--config=a b.yaml", "--ckpt_path", "last", "--trainer.max_steps=9", "--ckpt_path=old.ckpt"]


def trainer(save: tuple[Path, int] | None, step: int, resumed: str | None = None) -> Any:
    checkpoint = SimpleNamespace(last_save=save)
    return SimpleNamespace(
        checkpoint_callback=checkpoint, global_step=step, state=SimpleNamespace(fn="fit"), ckpt_path=resumed
    )


def test_the_command_to_go_on(tmp_path: Path) -> None:
    save = tmp_path / "last.ckpt"
    save.touch()
    sentence = explain_stop(Stopped(signal.SIGINT), trainer((save, 4), 6), ARGS)
    assert "Ctrl-C after step 6" in sentence
    assert "has step 4, and the 2 steps after it are lost" in sentence
    command = shlex.split(sentence.partition("to go on: ")[2])
    assert command == ["zolit", "fit", "--config=a b.yaml", "--trainer.max_steps=9", "--ckpt_path", str(save)]


def test_nothing_saved(tmp_path: Path) -> None:
    gone = tmp_path / "last.ckpt"
    stopped = Stopped(signal.SIGTERM)
    assert explain_stop(stopped, trainer((gone, 4), 4), ARGS).endswith(f"nothing was saved: {gone} is gone")
    assert explain_stop(stopped, trainer(None, 0, "runs/x/last.ckpt"), ARGS).endswith("runs/x/last.ckpt is unchanged")
    assert explain_stop(stopped, trainer(None, 0), ARGS) == (
        "stopped by SIGTERM before the first step; nothing was saved"
    )


@pytest.mark.parametrize(("signum", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_each_signal_has_its_status(signum: str, status: int) -> None:
    before = signal.getsignal(signal.Signals[signum])
    try:
        with pytest.raises(Stopped) as stopped, stoppable():
            signal.raise_signal(signal.Signals[signum])
        assert stopped.value.code == status
        assert name_of(stopped.value) == ("Ctrl-C" if signum == "SIGINT" else signum)
        assert signal.getsignal(signal.Signals[signum]) is signal.SIG_IGN
    finally:
        for each in ("SIGINT", "SIGTERM", "SIGHUP"):
            signal.signal(signal.Signals[each], before if each == signum else signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
