"""Prints the tables of the study in Markdown, from the csv files beside it.

    python docs/lab/2026-11-28-evidence/tables.py

Intervals hold 95 % of 2,000 bootstrap samples. A sample draws seeds and test examples with replacement, the same ones
for all methods.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from entries import METHODS, SETS

HERE = Path(__file__).parent
SAMPLES = 2000
SEEDS = 3
Array = np.ndarray


@dataclass(frozen=True)
class Row:
    """A method on a problem, after a number of units.

    Attributes:
        lr: The rate.
        loss: Mean, and the interval.
        score: The same in percent; not a number without a score.
        gap: Loss minus MeZO's, and the interval.
    """

    lr: str
    loss: tuple[float, float, float]
    score: tuple[float, float, float]
    gap: tuple[float, float, float]


def read(name: str) -> list[dict[str, str]]:
    """Returns the rows of a csv; none if there is no such file."""
    file = HERE / f"{name}.csv"
    csv.field_size_limit(1 << 20)
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines())) if file.exists() else []


def summaries(problem: str, seeds: int = SEEDS) -> dict[int, dict[str, Row]]:
    """Returns the rows of a problem by units and method. Only methods with all of the first so many seeds are in it."""
    found: dict[tuple[str, int], list[dict[str, str]]] = {}
    for row in (row for row in read(f"examples-{problem}") if int(row["seed"]) < seeds):
        found.setdefault((row["method"], int(row["units"])), []).append(row)
    means = {(r["method"], int(r["units"]), r["seed"]): r for r in read("results") if r["problem"] == problem}
    generator = np.random.default_rng(0)
    draws: list[tuple[Array, Array]] = []
    tables: dict[int, dict[str, Row]] = {}
    for (method, units), runs in found.items():
        if len(runs) < seeds:
            continue
        losses = np.array([[float(loss) for loss in run["losses"].split()] for run in runs])
        scores = np.array([[float(s) for s in run["scores"]] or [math.nan] * losses.shape[1] for run in runs])
        while len(draws) < SAMPLES:
            draws.append(
                (generator.integers(seeds, size=seeds), generator.integers(losses.shape[1], size=losses.shape[1]))
            )
        plain = found.get(("MeZO", units), runs)
        base, own = sample(plain if len(plain) == seeds else runs, draws), sample(runs, draws)
        score = [float(np.mean(scores[s][:, e])) * 100 for s, e in draws]
        tables.setdefault(units, {})[method] = Row(
            runs[0]["lr"],
            interval(float(np.mean([float(means[method, units, run["seed"]]["loss"]) for run in runs])), own),
            interval(float(scores.mean()) * 100, score),
            interval(float(np.mean(own) - np.mean(base)), [o - b for o, b in zip(own, base, strict=True)]),
        )
    return tables


def sample(runs: list[dict[str, str]], draws: list[tuple[Array, Array]]) -> list[float]:
    """Returns the mean loss in each bootstrap sample."""
    losses = np.array([[float(loss) for loss in run["losses"].split()] for run in runs])
    return [float(losses[s][:, e].mean()) for s, e in draws]


def interval(mean: float, samples: list[float]) -> tuple[float, float, float]:
    """Returns the mean and the 95 % interval."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return mean, float(low), float(high)


def cell(value: tuple[float, float, float], digits: int) -> str:
    """Returns a mean with its interval."""
    mean, low, high = value
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def print_problem(problem: str, labels: list[str], seeds: int = SEEDS) -> None:
    """Prints the table of a problem, the lowest loss at the end of a run first."""
    tables = summaries(problem, seeds)
    if not any(label in own for own in tables.values() for label in labels):
        return
    early, late = min(tables), max(tables)
    print(f"\n### {problem}: {late} units, {seeds} seeds\n")
    print(
        f"| method | rate | loss after {early} | loss after {late} | score | loss - MeZO's |\n|---|---|---|---|---|---|"
    )
    done = [label for label in labels if label in tables[late]]
    for label in sorted(done, key=lambda name: tables[late][name].loss[0]):
        row, first = tables[late][label], tables[early][label]
        score = "" if math.isnan(row.score[0]) else cell(row.score, 1)
        gap = cell(row.gap, 3) if any(row.gap) else ""
        print(f"| {label} | {row.lr} | {cell(first.loss, 3)} | {cell(row.loss, 3)} | {score} | {gap} |")


def print_auto(problems: list[str]) -> None:
    """Prints the losses with the rate of ``lr: auto`` beside those with the searched rate."""
    print("\n| | method | rate of auto | loss | searched rate | loss | ratio |\n|---|---|---|---|---|---|---|")
    for problem in problems:
        tables = summaries(problem)
        rows = tables[max(tables)] if tables else {}
        for label in (label for label in rows if f"{label}, auto" in rows):
            own, best = rows[f"{label}, auto"], rows[label]
            cells = (own.lr, f"{own.loss[0]:.3f}", best.lr, f"{best.loss[0]:.3f}", f"{own.loss[0] / best.loss[0]:.2f}")
            print(f"| {problem} | {label} | {' | '.join(cells)} |")


def main() -> None:
    """Prints all tables."""
    problems = list(dict.fromkeys(row["problem"] for row in read("results")))
    for problem in problems:
        for made in SETS.values():
            print_problem(problem, list(made))
        print_problem(problem, list(METHODS), seeds=5)
    print_auto(problems)


if __name__ == "__main__":
    main()
