"""Measures the memory and the time of first-order steps: ``python run.py MODEL {32-true,bf16-true}``."""

from __future__ import annotations

import sys
import time
from statistics import median
from typing import Any

import torch

from zolit import FirstOrder
from zolit.cli.bench.memory import peak_bytes
from zolit.cli.bench.workload import Workload
from zolit.models.tuning import LoRA

RECOMPUTE: dict[str, Any] = {"recompute": True}
FUSED: dict[str, Any] = {**RECOMPUTE, "keep_gradients": False}
FORMS: dict[str, dict[str, Any]] = {
    "adam": {},
    "adam, recompute": RECOMPUTE,
    "adam, recompute, fused": FUSED,
    "sgd, recompute, fused": {**FUSED, "rule": "sgd"},
    "factored, recompute, fused": {**FUSED, "rule": "factored"},
    "adam, last 4 layers": {"layers": 4},
    "adam, LoRA": {},
    "adam, LoRA, recompute": RECOMPUTE,
}


def measure(folder: str, dtype: torch.dtype, name: str) -> str:
    """Returns a row: peak memory of a step and of a forward, and the time of a step in forwards, in three rounds."""
    workload = Workload(folder, dtype=dtype, device=torch.device("cpu"), batch=16, tokens=40)
    workload.inference()
    inference = workload.weight_bytes + peak_bytes(workload.device, workload.inference, workload.inference)
    model = LoRA().apply(workload.model) if "LoRA" in name else workload.model
    made: list[FirstOrder] = []

    def prepare() -> None:
        made.append(FirstOrder(model, lr=1e-7, **FORMS[name]))
        step()

    def step() -> None:
        made[0].step(workload.losses)

    peak = workload.weight_bytes + peak_bytes(workload.device, prepare, step)
    ratios = []
    for _ in range(3):
        start = time.perf_counter()
        workload.inference()
        middle = time.perf_counter()
        step()
        ratios.append((time.perf_counter() - middle) / (middle - start))
    spread = f"{median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
    return f"{name}: {peak >> 20} MiB, {peak / inference:.3f} x inference, {spread} forwards"


if __name__ == "__main__":
    for form in FORMS:
        kind = {"32-true": torch.float32, "bf16-true": torch.bfloat16}[sys.argv[2]]
        print(measure(sys.argv[1], kind, form), flush=True)
