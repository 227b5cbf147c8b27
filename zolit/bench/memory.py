"""The peak of what tensors hold, to the byte."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.autograd.profiler import profile, record_function

_MEASURED = "zolit bench: measured"


def peak_bytes(device: torch.device, prepare: Callable[[], object], measured: Callable[[], object]) -> int:
    """Returns the most that tensors held while ``measured`` ran, beyond what they held before ``prepare``.

    What ``prepare`` leaves behind counts: scratch that is kept from its steps to the next. Memory that was there before
    does not, whether it is freed or not.

    On a CPU torch's profiler reports every block that the allocator hands out or takes back in this thread, also within
    an operator, and so to the byte. What libraries keep without asking the allocator is not in it, and neither is
    freed memory that the C library holds on to: resident memory is more. On CUDA it is the caching allocator's
    ``max_memory_allocated``.

    Args:
        device: Whose memory.
        prepare: Called first.
        measured: Called second, and measured.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        prepare()
        torch.cuda.reset_peak_memory_stats(device)
        measured()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes its starts and stops to the terminal
    with profile(profile_memory=True) as recorded:
        prepare()
        with record_function(_MEASURED):
            measured()
    assert recorded.kineto_results is not None
    events = _flat(recorded.kineto_results.experimental_event_tree())
    # By address: of a block from before, the profiler may report the size of another that it saw there long ago.
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
    """Yields the events of a forest."""
    for event in events:
        yield event
        yield from _flat(event.children)
