"""How the C library keeps memory: activations come and go by the megabyte, thousands of times a minute."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_MMAP_THRESHOLD = 32 << 20
_KEPT = 1 << 30


def keep_freed_memory() -> bool:
    """Has glibc keep up to 1 GiB of freed memory for the next activations instead of giving it back to the kernel.

    By default each forward of a small model on a CPU gets its activations from the kernel anew, page by page: 85,000
    page faults for 16 x 40 tokens through 135 million parameters, some tenth of the forward's time. Peak memory is the
    same; what is held between peaks is more. Set for the whole process, so it is the command that calls this.

    Returns:
        Whether there is a glibc to be told.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_TRIM_THRESHOLD, _KEPT))
