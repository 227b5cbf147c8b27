from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import ctypes
import torch
from zolit.cli.allocator import tune_malloc

class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Mallinfo

def held_after_freeing():
    torch.ones(6 << 20)
    return mallinfo().fordblks

without = held_after_freeing()
assert tune_malloc()
print(without, held_after_freeing())
"""


def test_freed_memory_is_used_again() -> None:
    """By default, 24 MiB of freed memory return to the kernel; after the call the allocator keeps them."""
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    without, kept = map(int, run.stdout.split())
    assert without < 20 << 20  # includes memory that imports have freed
    assert kept >= 24 << 20
