"""Finds weights that are NaN or infinite."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Returns the name of the first tensor that has a NaN or an infinity; None if all numbers are finite.

    Called when a model or a checkpoint is loaded, and before a checkpoint is saved. It makes no copy of a tensor of 16
    bits or more. On a GPU the host waits once for each tensor.

    Args:
        tensors: Names and tensors, of any shape and type. Tensors without numbers (integers, meta, empty) are passed
            over.
    """
    for name, tensor in tensors:
        if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
            continue
        own = tensor.detach()
        low, high = torch.aminmax(own.float() if own.itemsize == 1 else own)  # torch has no aminmax for float8
        if not (math.isfinite(low) and math.isfinite(high)):
            return name
    return None
