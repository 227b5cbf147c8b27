"""Draws the csv of ``convergence.py``: held-out loss and accuracy against forwards, and loss against seconds.

    cd docs/lab/common
    python convergence_plot.py convergence.csv ../2026-11-27-directions-within-the-span/per-example.png full
    python convergence_plot.py convergence.csv ../2026-11-25-lora/lora.png lora full

The first command draws runs with all weights; the second compares them with LoRA.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from matplotlib import pyplot as plt

LABELS = {
    ("full", "MeZO", "3e-05", "none", "{}"): ("MeZO, 3e-5", "0.4"),
    ("full", "MeZO", "0.0001", "none", '{"directions": 4}'): ("MeZO, q = 4, 1e-4", "0.7"),
    ("full", "CurvZO", "3e-05", "none", "{}"): ("CurvZO, 3e-5", "C2"),
    ("full", "PerExample", "0.0001", "linear", "{}"): ("PerExample, 1e-4, falling over 600", "C0"),
    ("full", "PerExample", "4e-05", "linear", "{}"): ("PerExample, 4e-5, falling over 6,000", "C1"),
    ("full", "AdamW", "2e-05", "linear", "{}"): ("AdamW, 2e-5, a step counts as 3", "C3"),
    ("lora", "MeZO", "0.003", "linear", '{"eps": 0.01}'): ("MeZO-LoRA, 3e-3, falling over 300", "0.4"),
    ("lora", "CurvZO", "0.003", "linear", '{"eps": 0.01}'): ("CurvZO-LoRA, 3e-3, falling over 300", "C2"),
    ("lora", "AdamW", "0.001", "none", "{}"): ("AdamW-LoRA, 1e-3, a step counts as 3", "C3"),
}


def main(file: Path, image: Path, *tunings: str) -> None:
    """Draws a line for each run whose options are in ``LABELS``.

    Args:
        file: The csv.
        image: The picture to write.
        tunings: ``full``, ``lora`` or both; the runs to draw.
    """
    with file.open(newline="", encoding="utf-8") as lines:
        found = list(csv.DictReader(lines))
    both = len(tunings) > 1
    if both:  # only methods that ran with all weights and with LoRA, up to the last forward of the shorter runs
        kept = ("MeZO", "CurvZO", "AdamW")
        found = [row for row in found if row["method"] in kept and "directions" not in row["options"]]
        found = [row for row in found if int(row["forwards"]) <= 400]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4))
    names = ("tuning", "method", "lr", "decay", "options")
    for drawn, (label, color) in LABELS.items():
        own = [row for row in found if tuple(row[name] for name in names) == drawn and drawn[0] in tunings]
        for number, seed in enumerate(dict.fromkeys(row["seed"] for row in own)):
            run = longest([row for row in own if row["seed"] == seed])
            if not both:
                run = run[1:]  # a logarithmic scale cannot show 0 forwards
            panels = (("loss", "forwards"), ("accuracy", "forwards"), ("loss", "seconds"))
            for axis, (name, spent) in zip(axes, panels, strict=True):
                x, y = [float(row[spent]) for row in run], [float(row[name]) for row in run]
                style = "--" if drawn[0] == "full" and both else "-"
                axis.plot(x, y, style, color=color, label=None if number else label)
                axis.set_title(f"held-out {name}")
                axis.set_xlabel("forward passes" if spent == "forwards" else "seconds, on machines that differ")
    for axis in (axes[0], axes[2]):
        axis.set_ylim(0.28, 1.1 if both else 0.7)
    axes[1].set_ylim(0.5, 0.92)
    if both:
        axes[0].legend(fontsize=8)
    else:
        axes[1].legend(fontsize=8, loc="lower right")
        for axis in axes:
            axis.set_xscale("log")
    figure.tight_layout()
    figure.savefig(image, dpi=80)


def longest(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Returns the longest run of several consecutive ones; each begins with 0 forwards."""
    begins = [place for place, row in enumerate(rows) if row["forwards"] == "0"]
    return max((rows[begin:end] for begin, end in zip(begins, [*begins[1:], len(rows)], strict=True)), key=len)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
