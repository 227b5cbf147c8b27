"""Finds weights that are NaN or infinite."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Returns the name of the first tensor with a value that is NaN or infinite; None if all values are finite.

    The smallest and the largest value tell, so no copy is as large as the tensor, except of 8-bit floats. Tensors on
    the meta device have no values and are skipped, as are integers and complex numbers.

    Args:
        tensors: Names and tensors.
    """
    for name, tensor in tensors:
        if tensor.is_meta or tensor.numel() == 0 or not tensor.is_floating_point():
            continue
        values = tensor.detach()
        # torch has no minimum of 8-bit floats
        lowest, highest = torch.aminmax(values.float() if values.element_size() == 1 else values)
        if not (torch.isfinite(lowest) and torch.isfinite(highest)):
            return name
    return None
