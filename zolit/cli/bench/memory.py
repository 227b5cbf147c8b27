"""Measures the peak memory of tensors, to the byte."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.autograd.profiler import profile, record_function

_MEASURED = "zolit bench: measured"


def peak_bytes(device: torch.device, prepare: Callable[[], object], measured: Callable[[], object]) -> int:
    """Returns the peak of the memory that tensors hold during ``measured``, beyond what they held before ``prepare``.

    Memory that ``prepare`` leaves allocated counts, such as scratch that is kept between steps. Memory from before does
    not count, even if it is freed meanwhile.

    On a CPU, torch's profiler reports each block that the allocator returns or frees in this thread, also within
    operators. It does not report memory that libraries allocate by other means, nor freed memory that the C library
    keeps. Resident memory is therefore larger. On CUDA the result is ``max_memory_allocated`` of the caching allocator.

    Args:
        device: The device whose memory is measured.
        prepare: Called first.
        measured: Called second, and measured.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        prepare()
        torch.cuda.reset_peak_memory_stats(device)
        measured()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints when it starts and stops
    with profile(profile_memory=True) as recorded:
        prepare()
        with record_function(_MEASURED):
            measured()
    assert recorded.kineto_results is not None
    events = _flat(recorded.kineto_results.experimental_event_tree())
    # By address: for a block from before, the profiler may report the size of an earlier block at the same address.
    held: dict[int, int] = {}
    total = peak = 0
    measuring = False
    for event in sorted(events, key=lambda event: event.start_time_ns):
        measuring = measuring or event.name == _MEASURED
        if event.name == "[memory]":
            block, size = event.extra_fields.ptr, event.extra_fields.alloc_size
            if size > 0:
                held[block] = size
                total += size
            else:
                total -= held.pop(block, 0)
        if measuring:
            peak = max(peak, total)
    return peak


def _flat(events: Iterable[Any]) -> Iterator[Any]:
    """Yields the events of a forest, parents first."""
    for event in events:
        yield event
        yield from _flat(event.children)
