"""Measures what a step of each method costs: peak memory, time and arithmetic, beside plain forwards of the same batch.

    python docs/lab/2026-11-28-evidence/costs.py MODEL_FOLDER
    python docs/lab/2026-11-28-evidence/costs.py MODEL_FOLDER --texts

Weights are bfloat16, and a batch has 16 rows of 40 tokens. ``costs.csv`` gets, for each method, the peak of the memory
that tensors hold in a step, divided by the peak of a forward (both with the weights), and the time and the operations
of a step, in forwards. The time is the median of five rounds; in each round a forward stands beside a step. The first
step is not counted. If every tenth step costs more, the peak is that of ten steps, and time and operations are their
means. Nothing else should run on the machine. With ``--texts`` each token but the first is predicted, and the file is
``costs-texts.csv``.
"""

from __future__ import annotations

import argparse
import gc
import time
from statistics import median
from typing import Any

import torch
from entries import METHODS, Entry
from run import HERE, append
from torch import Tensor
from zolit_callbacks.arithmetic import FlopCounter

from zolit.cli.allocator import tune_malloc
from zolit.cli.bench.memory import peak_bytes
from zolit.cli.bench.workload import Workload
from zolit.models.batches import TextBatch
from zolit.models.language_model import LanguageModel
from zolit.models.tuning import Full, LoRA
from zolit.optim import ZerothOrder

COLUMNS = ("method", "memory_over_inference", "seconds_over_forward", "flops_over_forward")
ROUNDS = 5


class Texts(Workload):
    """The workload with a loss at each token but the first, whose logits are made in pieces."""

    def __init__(self, folder: str, **options: Any) -> None:
        super().__init__(folder, **options)
        ids = self._batch.input_ids
        self._texts = TextBatch(ids, torch.ones_like(ids), torch.arange(len(ids)))
        self._whole = LanguageModel(self.model, Full())
        self._whole.prepare_texts(self._texts)

    def losses(self, copies: int = 1) -> Tensor:
        """Returns the loss of each text; see ``Workload.losses``."""
        return self._whole.text_losses(self._texts.repeated(copies))


def measure(folder: str, made: Entry, kind: type[Workload]) -> tuple[float, float, float]:
    """Returns memory, seconds and operations of a step, each divided by those of a forward."""
    workload = kind(folder, dtype=torch.bfloat16, device=torch.device("cpu"), batch=16, tokens=40)
    workload.inference()
    inference = workload.weight_bytes + peak_bytes(workload.device, workload.inference, workload.inference)
    model = LoRA().apply(workload.model) if made.lora else workload.model
    optimizers: list[ZerothOrder] = []

    def prepare() -> None:
        optimizers.append(made.make(model, 1e-9, 0))
        step()

    def step() -> None:
        optimizers[0].step(lambda: workload.losses(optimizers[0].batch_repeats))

    def steps() -> None:
        for _ in range(made.period):
            step()

    peak = workload.weight_bytes + peak_bytes(workload.device, prepare, steps)
    with FlopCounter() as counter:
        steps()
    with FlopCounter() as plain:
        workload.inference()
    ratios = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        workload.inference()
        middle = time.perf_counter()
        steps()
        ratios.append((time.perf_counter() - middle) / (middle - start) / made.period)
    return peak / inference, median(ratios), counter.flops / plain.flops / made.period


def main() -> None:
    """Writes a row for each method."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--texts", action="store_true", help="a loss at each token but the first")
    parser.add_argument("--only", default="", help="measure only the methods of these names, with | between them")
    options = parser.parse_args()
    tune_malloc()
    kind, name = (Texts, "costs-texts.csv") if options.texts else (Workload, "costs.csv")
    for label, method in METHODS.items():
        # The step of a linear probe is a forward.
        if label == "LinearProbe" or (options.only and label not in options.only.split("|")):
            continue
        append(HERE / name, COLUMNS, [label, *(f"{n:.3f}" for n in measure(options.model, method, kind))])
        gc.collect()


if __name__ == "__main__":
    main()
