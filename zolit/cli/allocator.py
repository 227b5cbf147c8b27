"""Tunes the memory allocator of the C library for the many short-lived activations of forward passes."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_MMAP_THRESHOLD = 32 << 20
_KEPT = 1 << 30


def tune_malloc() -> bool:
    """Makes glibc keep up to 1 GiB of freed memory for the next activations, instead of returning it to the kernel.

    By default, each forward of a small model on a CPU gets its activations from the kernel page by page. For 16 x 40
    tokens through 135 million parameters, this causes 85,000 page faults, about a tenth of the forward's time. The peak
    of memory stays the same; between peaks the process holds more. The setting affects the whole process, so only the
    command line calls this function.

    Returns:
        Whether glibc accepted the setting; False with another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_TRIM_THRESHOLD, _KEPT))
