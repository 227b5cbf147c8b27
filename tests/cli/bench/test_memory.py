"""Peak memory, on allocations of known size."""

from __future__ import annotations

import torch

from zolit.cli.bench.memory import peak_bytes

CPU = torch.device("cpu")


def block(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8)


def test_peak_counts_memory_held_at_once() -> None:
    def allocate() -> None:
        first = block(1_000_000)
        second = block(2_000_000)
        del first
        third = block(500_000)
        del second, third
        block(2_900_000)

    assert peak_bytes(CPU, lambda: None, allocate) == 3_000_000


def test_peak_counts_memory_that_preparing_leaves_and_not_what_it_frees() -> None:
    kept = []

    def prepare() -> None:
        block(5_000_000)
        kept.append(block(300_000))

    assert peak_bytes(CPU, prepare, lambda: block(1_000)) == 301_000


def test_peak_counts_memory_within_an_operator() -> None:
    """The operator computes singular values of an internal copy."""
    matrix = torch.ones(100, 1_000)
    assert peak_bytes(CPU, lambda: None, lambda: torch.linalg.svdvals(matrix)) > matrix.nbytes


def test_memory_from_before_does_not_count() -> None:
    """The address may be that of a measured block that was freed without a record; see ``peak_bytes``."""
    old = []
    peak_bytes(CPU, lambda: None, lambda: old.append(block(1 << 26)))
    old.clear()
    old.append(block(1 << 26))
    assert peak_bytes(CPU, lambda: None, lambda: (old.clear(), block(10_000))) == 10_000
