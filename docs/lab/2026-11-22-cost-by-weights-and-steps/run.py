"""Measures how a step's cost grows with the weights that it perturbs and with the steps taken before.

    python docs/lab/2026-11-22-cost-by-weights-and-steps/run.py MODEL_FOLDER

Prints, for MeZO in float32, the time of a step beyond two forwards when some of the layers are tuned. The lowest layers
are tuned first, so that no layer's output can be reused between probes. Then prints the time of a step with all
layers tuned, before and after a hundred more steps.
"""

from __future__ import annotations

import sys
import time
from statistics import median

import torch

from zolit import MeZO
from zolit.cli.allocator import tune_malloc
from zolit.cli.bench.workload import Workload


def seconds(optimizer: MeZO, workload: Workload) -> tuple[float, float]:
    """Returns the seconds of two forwards and the seconds of a step."""
    start = time.perf_counter()
    with torch.no_grad():
        workload.losses()
        workload.losses()
    middle = time.perf_counter()
    optimizer.step(workload.losses)
    return middle - start, time.perf_counter() - middle


def main(folder: str) -> None:
    """Prints a line for each number of layers, and one for early and late steps."""
    tune_malloc()
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
