"""Measures the error of the projected gradient against the probe radius ε; writes a csv and a plot.

    python docs/lab/2026-11-22-which-epsilon/run.py MODEL_FOLDER REVIEWS.jsonl OUT_FOLDER

The script compares Δ(ε) = [L(θ + εu) - L(θ - εu)] / 2ε with ⟨∇L(θ), u⟩, for a batch of labelled sentences and a few
directions u of the pool. One backward pass in float32 gives the gradient at the same weights (for bf16: at the rounded
weights). The error is the root mean square of Δ - ⟨∇L, u⟩ over directions, divided by that of ⟨∇L, u⟩.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import zolit
from zolit.optim import Directions, Step

RADII = [1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
DIRECTIONS = 6
EXAMPLES = 16


def loss_of(model: PreTrainedModel, tokens: dict[str, Tensor], words: list[int], labels: Tensor) -> Tensor:
    """Returns the mean cross-entropy of the label words, shape ()."""
    logits = model(**tokens, use_cache=False, logits_to_keep=1).logits[:, -1]
    return functional.cross_entropy(logits[:, words].float(), labels)


def errors(folder: str, records: list[dict[str, object]], dtype: torch.dtype) -> list[tuple[float, float, float]]:
    """Returns (ε, relative error, root mean square of ⟨∇L, u⟩) for every radius."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokens = dict(tokenizer([f"{r['sentence']} It was" for r in records], return_tensors="pt", padding=True))
    words = [tokenizer(word).input_ids[0] for word in (" terrible", " great")]
    labels = torch.tensor([int(str(r["label"])) for r in records])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    exact.load_state_dict(model.state_dict())
    loss_of(exact, tokens, words, labels).backward()
    gradients = {name: parameter.grad.view(-1) for name, parameter in exact.named_parameters()}

    optimizer = zolit.MeZO(model, lr=1e-6)
    sample = optimizer.selection.select(Step(0, 0))
    true, measured = [], []
    for index in range(DIRECTIONS):
        step = Step(0, index)
        optimizer.perturbation.begin_step(step)
        directions = Directions(sample, optimizer.perturbation, step, ids=[0])
        slope = 0.0
        for weight in directions.weights:
            for start, stop in directions.chunks(weight):
                u, factor = directions.draw(0, weight, start, stop)
                slope += factor * float(gradients[weight.name][start:stop] @ u)
        queries = torch.tensor([[sign * radius] for radius in RADII for sign in (1.0, -1.0)], dtype=torch.float64)
        with torch.no_grad():
            losses = optimizer.prober.losses(lambda: loss_of(model, tokens, words, labels), directions, queries)
        above, below = losses.double().view(-1, 2).unbind(1)
        true.append(slope)
        measured.append((above - below) / (2.0 * torch.tensor(RADII, dtype=torch.float64)))
        sys.stderr.write(f"{dtype} direction {index + 1} of {DIRECTIONS}\n")
    slopes = torch.tensor(true, dtype=torch.float64)
    size = slopes.square().mean().sqrt()
    error = (torch.stack(measured) - slopes.unsqueeze(1)).square().mean(0).sqrt() / size
    return [(radius, value, float(size)) for radius, value in zip(RADII, error.tolist(), strict=True)]


def main(folder: str, reviews: str, out: str) -> None:
    """Measures both precisions and writes ``finite-difference.csv`` and ``finite-difference.png``."""
    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415  # after the backend is chosen

    records = [json.loads(line) for line in Path(reviews).read_text(encoding="utf-8").splitlines()[:EXAMPLES]]
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    with (Path(out) / "finite-difference.csv").open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(["precision", "eps", "relative_error", "rms_derivative"])
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            rows = errors(folder, records, dtype)
            writer.writerows((name, *row) for row in rows)
            axes.loglog([row[0] for row in rows], [row[1] for row in rows], marker="o", label=name)
    axes.axhline(1.0, color="gray", linestyle=":")
    axes.annotate("as large as the derivative itself", (RADII[0], 1.1), color="gray")
    axes.set(xlabel="probe radius ε", ylabel="error of Δ, relative", title="Finite differences in two precisions")
    axes.legend()
    figure.savefig(Path(out) / "finite-difference.png", dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
