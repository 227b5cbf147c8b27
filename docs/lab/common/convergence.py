"""Trains on real text for a given number of forwards and writes held-out loss and accuracy to a csv on the way.

    python docs/lab/common/convergence.py MODEL_FOLDER TRAIN.jsonl VALIDATION.jsonl OUT.csv \
        --method PerExample --lr 1e-4 --forwards 600 --decay linear --seed 1 --options '{"rank": 2}'

Weights are bfloat16. A batch has 16 examples. 300 sentences are held out. ``--method AdamW`` is first-order training in
float32; each of its steps counts as 3 forwards. ``--lora`` tunes adapters of rank 8, in float32, on the query and value
projections. Several studies share this script and ``convergence.csv``.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from reviews import Reviews
from torch import nn
from transformers import AutoModelForCausalLM

import zolit
from zolit.cli.allocator import tune_malloc

BATCH = 16
HELD_OUT = 300
COLUMNS = ("method", "tuning", "lr", "decay", "options", "seed", "forwards", "seconds", "loss", "accuracy")


def main() -> None:
    """Runs the training and appends its results to the csv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("train", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", default="MeZO")
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--forwards", type=int, default=600)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--decay", choices=("none", "linear"), default="none")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--options", type=json.loads, default={})
    options = parser.parse_args()
    tune_malloc()
    first_order = options.method == "AdamW"
    dtype = torch.float32 if first_order else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).eval().to(options.device)
    if options.lora:
        torch.manual_seed(options.seed)
        config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], bias="none")
        model = get_peft_model(model, config).eval()
    reviews = Reviews(options.model, options.train, options.validation, model, HELD_OUT)
    step, cost = stepper(options, model, reviews)
    order = torch.Generator().manual_seed(options.seed)
    total, used, spent, recorded = options.forwards, 0, 0.0, 0
    indices: list[int] = []
    record(options, 0, 0.0, reviews)
    while used + cost <= total:
        if len(indices) < BATCH:
            indices = torch.randperm(len(reviews.train), generator=order).tolist()
        batch, indices = indices[:BATCH], indices[BATCH:]
        start = time.perf_counter()
        step([reviews.train[i] for i in batch], batch, 1.0 - used / total if options.decay == "linear" else 1.0)
        spent += time.perf_counter() - start
        used += cost
        if used // options.every > recorded or used + cost > total:
            recorded = used // options.every
            record(options, used, spent, reviews)


Step = Callable[[list[dict[str, Any]], list[int], float], None]


def stepper(options: argparse.Namespace, model: nn.Module, reviews: Reviews) -> tuple[Step, int]:
    """Builds the optimizer.

    Returns:
        A function that makes a step, given records, their ids and the share of the rate; and the forwards of a step.
    """
    if options.method == "AdamW":
        parameters = [p for p in model.parameters() if p.requires_grad]
        adam = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=0.0)

        def descend(records: list[dict[str, Any]], _: list[int], share: float) -> None:
            adam.param_groups[0]["lr"] = options.lr * share
            reviews.losses(records).mean().backward()
            adam.step()
            adam.zero_grad()

        return descend, 3
    optimizer = getattr(zolit, options.method)(model, lr=options.lr, seed=options.seed, **options.options)

    def probe(records: list[dict[str, Any]], ids: list[int], share: float) -> None:
        optimizer.param_groups[0]["lr"] = options.lr * share
        optimizer.step(lambda: reviews.losses(records), **({"examples": ids} if optimizer.per_example else {}))

    return probe, 2 * options.options.get("directions", 1)


def record(options: argparse.Namespace, used: int, spent: float, reviews: Reviews) -> None:
    """Appends a line to the csv: the run's options, forwards and seconds so far, held-out loss and accuracy."""
    loss, accuracy = reviews.held_out()
    new = not options.out.exists()
    with options.out.open("a", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        if new:
            writer.writerow(COLUMNS)
        tuning = "lora" if options.lora else "full"
        run = [options.method, tuning, options.lr, options.decay, json.dumps(options.options), options.seed]
        writer.writerow([*run, used, f"{spent:.1f}", f"{loss:.4f}", f"{accuracy:.3f}"])


if __name__ == "__main__":
    main()
