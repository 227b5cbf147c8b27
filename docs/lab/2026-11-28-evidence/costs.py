"""Measures what a step of each method costs: peak memory, time and arithmetic, beside plain forwards of the same batch.

    python docs/lab/2026-11-28-evidence/costs.py MODEL_FOLDER

Weights are bfloat16, and a batch has 16 rows of 40 tokens. ``costs.csv`` gets, for each method, the peak of the memory
that tensors hold in a step, divided by the peak of a forward (both with the weights), and the time and the operations
of a step, in forwards. The time is the median of five rounds; in each round a forward stands beside a step. The first
step is not counted. Nothing else should run on the machine.
"""

from __future__ import annotations

import gc
import sys
import time
from statistics import median

import torch
from entries import METHODS, Entry
from run import HERE, append
from zolit_callbacks.arithmetic import FlopCounter

from zolit.cli.allocator import tune_malloc
from zolit.cli.bench.memory import peak_bytes
from zolit.cli.bench.workload import Workload
from zolit.models.tuning import LoRA
from zolit.optim import ZerothOrder

COLUMNS = ("method", "memory_over_inference", "seconds_over_forward", "flops_over_forward")
ROUNDS = 5


def measure(folder: str, made: Entry) -> tuple[float, float, float]:
    """Returns memory, seconds and operations of a step, each divided by those of a forward."""
    workload = Workload(folder, dtype=torch.bfloat16, device=torch.device("cpu"), batch=16, tokens=40)
    workload.inference()
    inference = workload.weight_bytes + peak_bytes(workload.device, workload.inference, workload.inference)
    model = LoRA().apply(workload.model) if made.lora else workload.model
    optimizers: list[ZerothOrder] = []

    def prepare() -> None:
        optimizers.append(made.make(model, 1e-9, 0))
        step()

    def step() -> None:
        optimizers[0].step(lambda: workload.losses(optimizers[0].batch_repeats))

    peak = workload.weight_bytes + peak_bytes(workload.device, prepare, step)
    with FlopCounter() as counter:
        step()
    with FlopCounter() as plain:
        workload.inference()
    ratios = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        workload.inference()
        middle = time.perf_counter()
        step()
        ratios.append((time.perf_counter() - middle) / (middle - start))
    return peak / inference, median(ratios), counter.flops / plain.flops


if __name__ == "__main__":
    tune_malloc()
    for label, method in METHODS.items():
        if label != "LinearProbe":  # its step is a forward
            append(HERE / "costs.csv", COLUMNS, [label, *(f"{n:.3f}" for n in measure(sys.argv[1], method))])
        gc.collect()
