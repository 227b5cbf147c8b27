"""Draws the figures of the study from the csv files beside it: ``python docs/lab/2026-11-28-evidence/figures.py``."""

from __future__ import annotations

import math
from pathlib import Path

from entries import GUIDANCE, METHODS, STEPS
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from tables import Row, read, summaries

HERE = Path(__file__).parent
COLUMNS = 3
BACKWARD, PROBE, OURS, FORWARD = "#c0392b", "#7f8c8d", "#2471a3", "#222222"
TITLES = {
    "smollm2-reviews": "SmolLM2, movie reviews",
    "smollm2-text": "SmolLM2, text",
    "smollm2-writing": "SmolLM2, last word",
    "smollm2-100-reviews": "SmolLM2, movie reviews",
    "smollm2-600-text": "SmolLM2, text",
    "gemma3-reviews": "Gemma 3, movie reviews",
}


def color(label: str) -> str:
    """Returns the color of a method: by what it needs."""
    if label.startswith(("FirstOrder", "Hi-ZFO")):
        return BACKWARD
    if label == "LinearProbe":
        return PROBE
    return OURS if label.startswith("DirectFeedback") else FORWARD


def dots(axis: Axes, rows: dict[str, Row], title: str) -> None:
    """Draws the loss of each method with its interval, the lowest on top."""
    order = sorted(rows, key=lambda name: -rows[name].loss[0])
    for place, label in enumerate(order):
        mean, low, high = rows[label].loss
        if math.isfinite(mean):
            axis.plot([low, high], [place, place], color=color(label), lw=2)
            axis.plot(mean, place, "o", color=color(label))
    axis.set_yticks(range(len(order)), order, fontsize=8)
    axis.set_title(title, fontsize=10)
    axis.grid(axis="x", alpha=0.3)


def draw_losses() -> None:
    """Draws the losses at the end of the runs of all problems."""
    problems = [name for name in TITLES if summaries(name)]
    lines = math.ceil(len(problems) / COLUMNS)
    figure, axes = plt.subplots(lines, COLUMNS, figsize=(5 * COLUMNS, 5 * lines), squeeze=False)
    for axis in axes.flat[len(problems) :]:
        axis.set_axis_off()
    for axis, problem in zip(axes.flat, problems, strict=False):
        tables = summaries(problem)
        rows = {name: row for name, row in tables[max(tables)].items() if name in METHODS}
        dots(axis, rows, f"{TITLES[problem]}, {max(tables)} forwards")
        axis.set_xlabel("held-out loss, with 95 % intervals")
    figure.suptitle(
        "Red: backward pass. Blue: DirectFeedback. Black: forward passes alone. Gray: linear probe.", fontsize=9
    )
    save(figure, "losses.png")


def draw_costs(problem: str) -> None:
    """Draws loss and score against peak memory, and loss against time."""
    costs = {row["method"]: row for row in read("costs")}
    tables = summaries(problem)
    if not costs or not tables:
        return
    rows = tables[max(tables)]
    steps = {r["method"]: int(r["steps"]) for r in read("results") if r["problem"] == problem}
    figure, axes = plt.subplots(1, 3, figsize=(17, 5))
    shown = sorted((label for label in rows if label in METHODS), key=lambda name: rows[name].loss[0])
    for number, label in enumerate(shown, 1):
        row = rows[label]
        own = costs.get(label, {"memory_over_inference": "1.0", "seconds_over_forward": "1.0"})
        memory = float(own["memory_over_inference"])
        time = float(own["seconds_over_forward"]) * steps[label]
        for axis, x, y in (
            (axes[0], memory, row.loss[0]),
            (axes[1], memory, row.score[0]),
            (axes[2], time, row.loss[0]),
        ):
            name = f"{number}  {label}" if axis is axes[2] else None
            axis.plot(x, y, "o", color=color(label), label=name, markersize=13, alpha=0.6)
            axis.annotate(str(number), (x, y), fontsize=8, ha="center", va="center", color="white")
    for axis in axes[:2]:
        axis.set_xscale("log")
        axis.minorticks_off()
        axis.set_xticks([1.0, 1.5, 2, 4, 8], ["1.0", "1.5", "2", "4", "8"])
        axis.set_xlabel("peak memory of a step / peak memory of inference")
    axes[2].set_xlabel("time of the run, in plain forwards")
    axes[2].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9)
    for axis, name in zip(axes, ("held-out loss", "held-out accuracy, %", "held-out loss"), strict=True):
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    save(figure, "costs.png")


def draw_guidance(problem: str) -> None:
    """Draws scores against true energies, and the losses of the forms of CurvZO."""
    energies = {row["block"]: row for row in read("energies")}
    scores = read("scores")
    if not scores:
        return
    figure, axes = plt.subplots(1, 3, figsize=(17, 5))
    for axis, form in zip(axes, ("default", "unbiased"), strict=False):
        own = [row for row in scores if row["form"] == form and float(row["score"]) > 0]
        x = [float(energies[row["block"]]["energy"]) for row in own]
        sizes = [math.log10(float(energies[row["block"]]["size"])) for row in own]
        drawn = axis.scatter(x, [float(row["score"]) for row in own], c=sizes, s=12, cmap="viridis")
        axis.set(xscale="log", yscale="log", xlabel="energy of the true gradient", ylabel="score after 100 steps")
        axis.set_title(f"CurvZO, {form}: a point is a tensor", fontsize=10)
        figure.colorbar(drawn, label="log10 of the size")
    tables = summaries(problem)
    kept = {name: row for name, row in tables[max(tables)].items() if name in GUIDANCE or name in ("MeZO", "CurvZO")}
    dots(axes[2], kept, "SmolLM2, movie reviews, 300 forwards")
    save(figure, "guidance.png")


def draw_steps(problem: str) -> None:
    """Draws loss and best rate of MeZO against the arithmetic of a step."""
    tables = summaries(problem)
    rows = tables[max(tables)] if tables else {}
    kept = {name: row for name, row in rows.items() if name in STEPS or name == "MeZO"}
    if len(kept) < 3:
        return
    figure, axes = plt.subplots(1, 2, figsize=(12, 4))
    dots(axes[0], kept, "SmolLM2, movie reviews, 300 forwards")
    for label, row in kept.items():
        q = int(label.split("q = ")[1].split(",")[0]) if "q = " in label else 1
        batch = int(label.split("batch ")[1]) if "batch " in label else 16
        axes[1].loglog(q * batch / 16, float(row.lr), "o", color=FORWARD)
        axes[1].annotate(label, (q * batch / 16, float(row.lr)), fontsize=7, xytext=(3, 3), textcoords="offset points")
    axes[1].set(xlabel="forwards of a step / 2", ylabel="best rate of four")
    axes[1].grid(alpha=0.3)
    save(figure, "steps.png")


def save(figure: plt.Figure, name: str) -> None:
    """Writes a figure."""
    figure.tight_layout()
    figure.savefig(HERE / name, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    draw_losses()
    draw_costs("smollm2-reviews")
    draw_guidance("smollm2-reviews")
    draw_steps("smollm2-reviews")
