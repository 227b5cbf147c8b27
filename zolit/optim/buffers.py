"""The size of the chunks in which weights are processed, and scratch memory that is reused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

_ROWS = 64
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


def pieces(shape: torch.Size, most: int) -> Sequence[tuple[int, int]]:
    """Returns the (start, stop) of the pieces in which a weight is processed. Called for each weight.

    A piece consists of whole rows and has at most ``most`` elements. A piece of more than 64 rows has a multiple of 64
    rows, because matrix products then run faster. Only rows longer than that are split.

    Args:
        shape: Shape of the weight. A row is what belongs to one index of the first dimension.
        most: Largest number of elements of a piece.
    """
    return _pieces(shape[0] if len(shape) > 1 else shape.numel(), shape.numel(), most)


@cache
def _pieces(rows: int, numel: int, most: int) -> tuple[tuple[int, int], ...]:
    row = numel // rows
    fitting = most // row
    length = row * (fitting - fitting % _ROWS if fitting > _ROWS else fitting) or most
    return tuple((start, min(start + length, numel)) for start in range(0, numel, length))


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
