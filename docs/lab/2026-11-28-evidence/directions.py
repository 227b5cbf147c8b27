"""Prints what ``lr: auto`` measures and chooses for MeZO with more directions a step.

    python docs/lab/2026-11-28-evidence/directions.py MODEL_FOLDER TRAIN.jsonl TEST.jsonl

The task is movie reviews, the run has 300 units, and the seed is 0. ``directions.csv`` gets a row for each number of
directions. The loss bends along an estimate as 1 / r*².
"""

from __future__ import annotations

import sys
from pathlib import Path

from entries import METHODS, STEPS
from problems import Problem
from run import HERE, Training, append

LABELS = ("MeZO", "MeZO, q = 4", "MeZO, q = 16")


def main() -> None:
    """Writes a row for each number of directions."""
    folder, train, test = sys.argv[1:]
    problem = Problem("reviews", folder, Path(train), Path(test), Path("runs/evidence/directions"))
    for label in LABELS:
        rate = Training(problem, {**METHODS, **STEPS}[label], "auto", 0, 300.0).choose_rate()
        row = [label, f"{rate.coefficient:.3g}", f"{rate.radius:.3g}", f"{rate.lr:.3g}", rate.forwards]
        append(HERE / "directions.csv", ("method", "coefficient", "radius", "lr", "forwards"), row)


if __name__ == "__main__":
    main()
