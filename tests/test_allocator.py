from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource
import torch
from zolit.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        held = [torch.ones(1 << 20) for _ in range(8)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
without = faults()
assert keep_freed_memory()
faults()
print(without, faults())
"""


def test_freed_memory_is_used_again() -> None:
    """80 tensors of 4 MiB: 80,000 pages from the kernel by default, next to none once freed memory is kept."""
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    without, kept = map(int, run.stdout.split())
    assert without > 10_000
    assert kept < without / 20
