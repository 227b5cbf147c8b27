"""Draws what ``convergence.py`` wrote: held-out loss and accuracy against forwards.

python docs/studies/convergence_plot.py docs/studies/convergence.csv docs/images/per-example.png
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from matplotlib import pyplot as plt

LABELS = {
    ("MeZO", "3e-05", "{}"): ("MeZO, 3e-5", "0.4"),
    ("MeZO", "0.0001", '{"directions": 4}'): ("MeZO, q = 4, 1e-4", "0.7"),
    ("CurvZO", "3e-05", "{}"): ("CurvZO, 3e-5", "C2"),
    ("PerExample", "1e-06", "{}"): ("PerExample, 1e-6, falling over 600", "C0"),
    ("PerExample", "5e-07", "{}"): ("PerExample, 5e-7, falling over 1,200", "C1"),
    ("AdamW", "2e-05", "{}"): ("AdamW, 2e-5, a step counts as 3", "C3"),
}


def main(file: Path, image: Path) -> None:
    """Draws a line for each run."""
    with file.open(newline="", encoding="utf-8") as lines:
        found = [row for row in csv.DictReader(lines) if row["tuning"] == "full"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for (method, lr, options), (label, color) in LABELS.items():
        own = [row for row in found if (row["method"], row["lr"], row["options"]) == (method, lr, options)]
        for number, seed in enumerate(dict.fromkeys(row["seed"] for row in own)):
            run = [row for row in own if row["seed"] == seed]
            for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
                x, y = [int(row["forwards"]) for row in run], [float(row[name]) for row in run]
                axis.plot(x, y, color=color, label=None if number else label)
                axis.set_title(f"held-out {name}")
                axis.set_xlabel("forward passes")
    axes[0].set_ylim(0.28, 0.7)
    axes[1].set_ylim(0.6, 0.92)
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(image, dpi=80)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
