"""Trains the quickstart's model with the rate of ``lr: auto`` and with twice this rate, and appends to ``rates.csv``.

    python docs/lab/2026-11-28-evidence/rates.py

The rate is constant. A run diverged if the held-out loss is above that of the model before training.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from entries import METHODS
from problems import Problem
from run import HERE, Training, append

import zolit
from zolit.errors import NonFiniteLossError

FOLDER = Path("zolit/quickstart")
NAMES = ("MeZO", "CurvZO", "LOZO", "PerExample")
LENGTHS = (30, 100, 300)
SEEDS = range(4)


class Float32(Problem):
    """A problem whose model is float32."""

    def language(self, lora: bool, seed: int) -> object:
        """Loads the model; see ``Problem.language``."""
        language = super().language(lora, seed)
        language.model.float()
        return language


def chosen(problem: Problem, name: str, seed: int, steps: int) -> float:
    """Returns the rate that ``auto`` chooses for a run of so many steps."""
    run = Training(problem, METHODS[name], "auto", seed, float("inf"))
    batches = list(islice(problem.batches(seed), 8))
    closures, ids = zip(*(run.closure(batch) for batch in batches), strict=True)
    examples = [own for own in ids if own is not None]
    return zolit.choose_rate(run.optimizer, closures, steps, examples, repeats_batch=not examples).lr


def trained(problem: Problem, name: str, seed: int, steps: int, lr: float) -> tuple[float, float]:
    """Returns loss and accuracy of the held-out sentences after a run."""
    run = Training(problem, METHODS[name], lr, seed, float("inf"))
    for batch in islice(problem.batches(seed), steps):
        closure, ids = run.closure(batch)
        try:
            run.optimizer.step(closure, examples=ids, repeats_batch=ids is None)
        except NonFiniteLossError:
            return float("inf"), 0.0
    found = problem.evaluate(run.language, "test")
    return found.loss, found.score


def main() -> None:
    """Writes a row for each method, length and seed."""
    files = FOLDER / "reviews.train.jsonl", FOLDER / "reviews.validation.jsonl"
    problem = Float32("reviews", str(FOLDER / "model"), *files, Path("runs/evidence/quickstart"))
    columns = ("method", "steps", "seed", "lr", "loss", "score", "loss of twice the rate")
    for name in NAMES:
        for steps in LENGTHS:
            for seed in SEEDS:
                lr = chosen(problem, name, seed, steps)
                (loss, score), (doubled, _) = (trained(problem, name, seed, steps, f * lr) for f in (1.0, 2.0))
                append(
                    HERE / "rates.csv",
                    columns,
                    [name, steps, seed, f"{lr:.3g}", f"{loss:.4f}", f"{score:.3f}", f"{doubled:.4f}"],
                )


if __name__ == "__main__":
    main()
