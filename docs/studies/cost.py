"""Does a step's cost grow with the weights that it perturbs, and not with the steps that were taken?

    python docs/studies/cost.py MODEL_FOLDER

Prints, for MeZO in float32, what a step takes beyond two forwards when a share of the layers is tuned, lowest
ones first so that no prefix is shared, and what steps 1 to 5 and 101 to 105 take with all of them.
"""

from __future__ import annotations

import sys
import time
from statistics import median

import torch

from zolit import MeZO
from zolit.allocator import keep_freed_memory
from zolit.bench.workload import Workload


def seconds(optimizer: MeZO, workload: Workload) -> tuple[float, float]:
    """Times two forwards and a step."""
    start = time.perf_counter()
    with torch.no_grad():
        workload.losses()
        workload.losses()
    middle = time.perf_counter()
    optimizer.step(workload.losses)
    return middle - start, time.perf_counter() - middle


def main(folder: str) -> None:
    """Prints a line for each share, and for early and late steps."""
    keep_freed_memory()
    workload = Workload(folder, dtype=torch.float32, device=torch.device("cpu"), batch=2, tokens=8)
    layers = workload.model.model.layers
    for count in (8, 15, 22, 30):
        workload.model.requires_grad_(False)
        layers[:count].requires_grad_()
        optimizer = MeZO(workload.model, lr=1e-9)
        optimizer.step(workload.losses)
        times = [seconds(optimizer, workload) for _ in range(15)]
        weights = sum(block.numel for block in optimizer.blocks)
        beyond = median(step - forwards for forwards, step in times)
        sys.stdout.write(
            f"{weights / 1e6:.1f} million weights: {1e3 * beyond:.0f} ms, {beyond / weights * 1e9:.2f} ns each\n"
        )
    early = [seconds(optimizer, workload)[1] for _ in range(5)]
    for _ in range(100):
        optimizer.step(workload.losses)
    late = [seconds(optimizer, workload)[1] for _ in range(5)]
    sys.stdout.write(f"early {1e3 * median(early):.0f} ms, 100 steps later {1e3 * median(late):.0f} ms\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
