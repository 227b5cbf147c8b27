"""Sizes of chunks."""

from __future__ import annotations

import pytest
import torch

from zolit.optim.buffers import CPU_CHUNK, chunk_size


@pytest.mark.parametrize(
    ("device", "sizes", "expected"),
    [
        ("cpu", [132], 1 << 15),
        ("cpu", [1000, 47_616], 1 << 17),
        ("cpu", [1 << 17], CPU_CHUNK),
        ("cpu", [1 << 30], CPU_CHUNK),
        ("cuda", [132], 1 << 20),
        ("cuda", [1 << 20] * 512, 1 << 22),
        ("cuda", [7_000_000_000], 1 << 23),
    ],
)
def test_chunk_sizes_follow_the_model(device: str, sizes: list[int], expected: int) -> None:
    assert chunk_size(torch.device(device), sizes) == expected
