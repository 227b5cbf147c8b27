from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import ctypes
import torch
from zolit.allocator import keep_freed_memory

class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Mallinfo

def held_after_freeing():
    torch.ones(6 << 20)
    return mallinfo().fordblks

without = held_after_freeing()
assert keep_freed_memory()
print(without, held_after_freeing())
"""


def test_freed_memory_is_used_again() -> None:
    """24 MiB that are freed go back to the kernel by default, and stay with the allocator once it is told."""
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    without, kept = map(int, run.stdout.split())
    assert without < 20 << 20  # what imports have freed is there too
    assert kept >= 24 << 20
