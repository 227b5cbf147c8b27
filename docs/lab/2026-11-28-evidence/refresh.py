"""Trains direct feedback on texts with and without corrections of its Jacobians, and evaluates six times in the run.

    python docs/lab/2026-11-28-evidence/refresh.py MODEL_FOLDER TRAIN.jsonl TEST.jsonl --units 1200 --refresh 10

``refresh.csv`` gets the loss of the tuning and of the test set after each sixth of the run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from entries import entry
from problems import Problem
from run import HERE, Training, append, measure_unit

import zolit
from zolit.cli.allocator import tune_malloc

COLUMNS = ("units", "refresh", "lr", "used", "steps", "tuning", "test")
PARTS = 6


def main() -> None:
    """Makes one run with seed 0."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--units", type=float, default=1200.0)
    parser.add_argument("--refresh", type=int, default=10)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--work", type=Path, default=Path("runs/evidence/refresh"))
    options = parser.parse_args()
    tune_malloc()
    problem = Problem("text", options.model, options.train, options.test, options.work)
    measure_unit(problem)
    run = Training(problem, entry(zolit.DirectFeedback, refresh=options.refresh), options.lr, 0, options.units)
    for part in range(1, PARTS + 1):
        run.train(part / PARTS)
        losses = [problem.evaluate(run.language, name, at_end=False).loss for name in ("validation", "test")]
        numbers = (f"{part / PARTS * options.units:.0f}", run.steps, *(f"{loss:.4f}" for loss in losses))
        append(HERE / "refresh.csv", COLUMNS, [f"{options.units:.0f}", options.refresh, f"{options.lr:.3g}", *numbers])


if __name__ == "__main__":
    main()
