"""A callback that sends a signal to its own process at a given place: a file for ``--code``, not a test.

The environment says where: ``ACCIDENT_AT`` is the name of a hook or ``write`` (in the middle of a checkpoint's write)
or ``import`` (before the options are read),
``ACCIDENT_CALL`` counts the calls from 1, and ``ACCIDENT_SIGNAL`` is the signal's number. 0 stands for a disk that is
full from there on: files cannot grow beyond 100 kB.
"""

from __future__ import annotations

import os
import resource
from typing import Any

import torch
from lightning.pytorch import Callback

AT = os.environ.get("ACCIDENT_AT", "")
CALL = int(os.environ.get("ACCIDENT_CALL", "1"))
SIGNAL = int(os.environ.get("ACCIDENT_SIGNAL", "9"))
HOOKS = (
    "setup",
    "on_fit_start",
    "on_sanity_check_start",
    "on_train_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_validation_start",
    "on_validation_batch_end",
    "on_validation_end",
    "on_train_end",
    "on_fit_end",
)


def happen() -> None:
    """Lets the accident happen."""
    if SIGNAL:
        os.kill(os.getpid(), SIGNAL)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


if AT == "import":
    happen()


class Accident(Callback):
    """Sends the signal. Lightning calls its hooks."""


def _hook(name: str) -> Any:
    calls = 0

    def hook(self: Accident, *_: Any, **__: Any) -> None:
        nonlocal calls
        calls += name == AT
        if name == AT and calls == CALL:
            happen()

    return hook


for _name in HOOKS:
    setattr(Accident, _name, _hook(_name))

if AT == "write":
    _save, _calls = torch.save, 0

    def _save_half(content: Any, file: Any) -> None:
        global _calls  # noqa: PLW0603  # it counts over all calls of the process
        _calls += 1
        if _calls == CALL:
            file.write(b"half a checkpoint")
            file.flush()
            happen()
            file.seek(0)
        _save(content, file)

    torch.save = _save_half  # type: ignore[assignment]  # with fewer options
