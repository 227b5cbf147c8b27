"""Compares the scores of CurvZO with the energy of the true gradient, block by block.

    python docs/lab/2026-11-28-evidence/guidance.py MODEL_FOLDER TRAIN.jsonl TEST.jsonl

``energies.csv`` gets the true energy G_b = ‖∂L/∂θ_b‖² of each tensor b, of the mean loss of 512 sentences, in float32.
Each form of CurvZO then makes 100 steps with a rate of 0. ``scores.csv`` gets the scores and the probabilities π that
it has in the end. ``guidance.csv`` gets, for each form, Spearman's rank correlations, and the variance

    V = (Σ d_b/π_b)(Σ π_b G_b) / (Σ d_b)(Σ G_b)

of its unbiased estimate, divided by that of MeZO, which perturbs all blocks (up to terms of the size of one block).
"""

from __future__ import annotations

import argparse
import csv
import itertools
from pathlib import Path

import torch
from problems import Problem
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

import zolit
from zolit.cli.allocator import tune_malloc
from zolit.models.language_model import LanguageModel
from zolit.models.loading import load_language_model
from zolit.models.tuning import Full
from zolit.optim import ZerothOrder
from zolit.optim.blocks import partition, trainable_weights

HERE = Path(__file__).parent
BATCHES, STEPS = 32, 100
FORMS = {
    "default": {},
    "literal": {"score": "literal", "exploration": 0.0},
    "published code": {"variant": "code"},
    "divided by size": {"divide_by_size": True},
    "unbiased": {"score": "unbiased"},
}


def true_energies(problem: Problem) -> dict[str, tuple[int, float]]:
    """Returns the size and the energy of the true gradient of each tensor."""
    loaded = load_language_model(problem.folder, dtype=torch.float32, attn_implementation=None, trust_remote_code=False)
    language = LanguageModel(loaded, Full())
    for batch in itertools.islice(problem.batches(7), BATCHES):
        (problem.objective.losses(language, batch).mean() / BATCHES).backward()
    blocks = partition(trainable_weights(language.model), "tensor")
    found = {}
    for block in blocks:
        gradients = [weight.parameter.grad for weight in block.weights]
        found[block.name] = block.numel, sum(float(g.square().sum()) for g in gradients if g is not None)
    return found


def final_sampling(problem: Problem, options: dict[str, object]) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Returns names, scores and π after steps that do not move the weights."""
    language = problem.language(False, 0)
    optimizer: ZerothOrder = zolit.CurvZO(language.model, lr=0.0, **options)
    for batch in itertools.islice(problem.batches(0), STEPS):
        optimizer.step(lambda batch=batch: problem.objective.losses(language, batch))
    report = optimizer.last_step.selection
    return report.names, report.scores, report.probabilities


def main() -> None:
    """Measures the energies, and compares the forms with them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"))
    options = parser.parse_args()
    tune_malloc()
    problem = Problem("reviews", options.model, options.train, options.test, options.work / "guidance")
    found = true_energies(problem)
    write("energies.csv", ("block", "size", "energy"), [(n, s, f"{e:.6g}") for n, (s, e) in found.items()])
    rows, scored = [], []
    sizes, energies = torch.tensor(list(found.values()), dtype=torch.float64).unbind(1)
    dense = sizes.sum() * energies.sum()
    for form, given in FORMS.items():
        names, scores, probabilities = final_sampling(problem, dict(given))
        order = [names.index(name) for name in found]
        scores, pi = scores[order], probabilities[order].clamp(min=1e-6)
        variance = float((sizes / pi).sum() * (pi * energies).sum() / dense)
        pairs = ((scores, energies), (scores, sizes), (scores, energies / sizes), (pi, energies))
        rows.append(
            (
                form,
                *(f"{float(spearman_corrcoef(*pair)):.3f}" for pair in pairs),
                f"{variance:.3g}",
                f"{float(pi.mean()):.3f}",
            )
        )
        scored += [(form, n, f"{s:.5g}", f"{p:.4f}") for n, s, p in zip(found, scores, pi, strict=True)]
        print(rows[-1], flush=True)
    header = ("form", "score_energy", "score_size", "score_energy_per_weight", "pi_energy", "variance", "mean_pi")
    write("guidance.csv", header, rows)
    write("scores.csv", ("form", "block", "score", "pi"), scored)


def write(file: str, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """Writes a csv."""
    with (HERE / file).open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([header, *rows])


if __name__ == "__main__":
    main()
