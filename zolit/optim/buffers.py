"""The size of the chunks in which weights are processed, and scratch memory that is reused."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CPU_CHUNK = 1 << 19
"""The largest chunk on a CPU, in numbers: 2 MiB of float32, about the size of the private cache of a core."""


def chunk_size(device: torch.device, sizes: Sequence[int]) -> int:
    """Returns the largest number of elements to process at a time, a power of two. Called by ``Perturbation.bind``.

    On a CPU the result lies between 2^15 and 2^19. Within these bounds it is two to four times the largest weight, so
    that a small model has a small pool. On other devices a kernel launch is expensive, so chunks are larger: a 128th
    of the model, between 2^20 and 2^23.

    Args:
        device: The device of the weights.
        sizes: Number of elements of each trainable weight.
    """
    if device.type == "cpu":
        return min(max(1 << (2 * max(sizes)).bit_length(), 1 << 15), CPU_CHUNK)
    return 1 << min(max((sum(sizes) >> 7).bit_length() - 1, 20), 23)


class Scratch:
    """Keeps one reusable buffer for each device, as large as the largest request so far.

    Args:
        dtype: Type of the buffers.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self._dtype = dtype
        self._buffers: dict[torch.device, Tensor] = {}

    def get(self, numel: int, device: torch.device) -> Tensor:
        """Returns the first ``numel`` elements of the buffer of a device, uninitialized, shape (numel,)."""
        buffer = self._buffers.get(device)
        if buffer is None or buffer.numel() < numel:
            buffer = self._buffers[device] = torch.empty(numel, dtype=self._dtype, device=device)
        return buffer[:numel]

    def bytes(self) -> int:
        """Returns the size of all buffers in bytes. Called when memory is reported."""
        return sum(buffer.nbytes for buffer in self._buffers.values())
