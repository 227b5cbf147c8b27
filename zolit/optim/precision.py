"""Keeps the arithmetic of stages in float32, whatever autocast the step or the closure runs in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

_UNCHANGED = nullcontext()


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Returns a context in which torch does not cast to 16 bits. Used for all computations with directions.

    A view draws a direction within the forward of the model, and the update draws it outside. Both must be equal, also
    if the closure calls the model within ``torch.autocast``. Some functions, such as ``torch.linalg.qr``, refuse 16
    bits.

    Args:
        device: The device of the computation.
    """
    kind = device.type
    return torch.autocast(kind, enabled=False) if kind != "meta" and torch.is_autocast_enabled(kind) else _UNCHANGED
