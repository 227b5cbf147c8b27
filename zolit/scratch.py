"""Buffers and generators that are made once per device and used again, a chunk at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK = 1 << 19
"""Numbers worked on at a time on a CPU: 2 MiB of float32, about what a core's own cache holds."""


def chunk(device: torch.device, sizes: Sequence[int]) -> int:
    """Returns how many numbers are worked on at a time, a power of two.

    On a CPU 2^19 and, so that no pool is larger than it need be, not more than twice to four times the largest weight,
    but at least 2^15. Where launching work takes long, the more the larger the model is: a 128th of it, 2^20 to 2^23.

    Args:
        device: Where.
        sizes: Of all trainable weights.
    """
    if device.type == "cpu":
        return min(max(1 << (2 * max(sizes)).bit_length(), 1 << 15), CHUNK)
    return 1 << min(max((sum(sizes) >> 7).bit_length() - 1, 20), 23)


class Scratch:
    """A reusable buffer per device, as large as the largest request so far."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self._dtype = dtype
        self._buffers: dict[torch.device, Tensor] = {}

    def take(self, numel: int, device: torch.device) -> Tensor:
        """Returns the first ``numel`` elements of the device's buffer, uninitialized, shape (numel,)."""
        buffer = self._buffers.get(device)
        if buffer is None or buffer.numel() < numel:
            buffer = self._buffers[device] = torch.empty(numel, dtype=self._dtype, device=device)
        return buffer[:numel]

    def bytes(self) -> int:
        """Returns the bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self._buffers.values())


class Generators:
    """One generator per device, seeded anew for each draw."""

    def __init__(self) -> None:
        self._generators: dict[torch.device, torch.Generator] = {}

    def seeded(self, key: int, device: torch.device) -> torch.Generator:
        """Returns the device's generator at the start of the stream that the key names."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        return self._generators[device].manual_seed(key & (1 << 63) - 1)
