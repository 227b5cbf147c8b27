"""Messages leave from the device of the weights, whatever the device of the tensor."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.conftest import ROOT
from zolit.training.exchange import Exchange

COLLECTIVE = re.compile(r"\bdist\.(all_|broadcast|gather|reduce|scatter|send|recv|isend|irecv|batch_)")


@pytest.mark.parametrize("message", ["total", "first", "joined"])
def test_messages_leave_from_the_device_of_the_weights(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    """The device is torch's meta device here: it takes no numbers back, but all that is sent must be on it."""
    seen: list[torch.device] = []

    def record(*args: Any) -> None:
        tensors = [t for arg in args for t in (arg if isinstance(arg, list) else [arg]) if isinstance(t, torch.Tensor)]
        seen.extend(tensor.device for tensor in tensors)

    for name in ("all_reduce", "all_gather", "broadcast"):
        monkeypatch.setattr(dist, name, record)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(Exchange, "device", torch.device("meta"))
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):  # the way back to the CPU
        getattr(Exchange(nn.Linear(1, 1)), message)(torch.ones(2, 3))
    assert seen
    assert {device.type for device in seen} == {"meta"}


def test_no_other_code_sends() -> None:
    """``split`` sends activations and whole weights, and ``safe_points`` a number that it makes on the device."""
    files = [*(ROOT / "zolit").rglob("*.py"), *(ROOT / "callbacks").rglob("*.py")]
    senders = {file.name for file in files if COLLECTIVE.search(file.read_text("utf-8"))}
    assert senders == {"exchange.py", "split.py", "safe_points.py"}
