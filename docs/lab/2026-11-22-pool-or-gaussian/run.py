"""Compares directions from a pool with normal numbers drawn one by one, along a real gradient.

    python docs/lab/2026-11-22-pool-or-gaussian/run.py MODEL_FOLDER REVIEWS.jsonl

One backward pass in float32 gives the gradient g of a batch of labelled sentences. The script draws directions u over
all weights from each distribution and prints the moments of s = ⟨u, g⟩ / ‖g‖. For u ~ N(0, I) the mean of s is 0, its
mean square 1, its fourth moment 3, and s is independent from step to step. ‖u‖² should equal the number of weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

import zolit
from zolit.optim import Directions, Gaussian, GaussianPool, Step

DIRECTIONS = 120
EXAMPLES = 16


def main(folder: str, reviews: str) -> None:
    """Prints a line for each distribution of the directions."""
    records = [json.loads(line) for line in Path(reviews).read_text(encoding="utf-8").splitlines()[:EXAMPLES]]
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokens = tokenizer([f"{record['sentence']} It was" for record in records], return_tensors="pt", padding=True)
    words = [tokenizer(word).input_ids[0] for word in (" terrible", " great")]
    labels = torch.tensor([int(record["label"]) for record in records])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    logits = model(**tokens, use_cache=False, logits_to_keep=1).logits[:, -1, words]
    functional.cross_entropy(logits, labels).backward()
    norm = float(torch.cat([parameter.grad.view(-1) for parameter in model.parameters()]).double().norm())
    for noise in (GaussianPool(), Gaussian()):
        optimizer = zolit.MeZO(model, lr=1e-6, perturbation=noise)
        sample = optimizer.selection.select(Step(0, 0))
        slopes, squared_norms = [], []
        for index in range(DIRECTIONS):
            step = Step(1, index)
            noise.begin_step(step)
            directions = Directions(sample, noise, step, ids=[0])
            slope = squared_norm = 0.0
            for weight in directions.weights:
                gradient = weight.parameter.grad.view(-1)
                for start, stop in directions.chunks(weight):
                    u, factor = directions.draw(0, weight, start, stop)
                    slope += factor * float(gradient[start:stop] @ u)
                    squared_norm += float(u @ u)
            slopes.append(slope / norm)
            squared_norms.append(squared_norm)
        s = torch.tensor(slopes, dtype=torch.float64)
        ratio = torch.tensor(squared_norms, dtype=torch.float64) / sum(block.numel for block in optimizer.blocks)
        sys.stdout.write(
            f"{type(noise).__name__}: mean {s.mean():+.3f} (± {DIRECTIONS**-0.5:.3f}), square {s.square().mean():.3f} "
            f"(± {(2 / DIRECTIONS) ** 0.5:.3f}), fourth {(s**4).mean():.2f} (± {(96 / DIRECTIONS) ** 0.5:.2f}), "
            f"next {(s[1:] * s[:-1]).mean():+.3f} (± {DIRECTIONS**-0.5:.3f}), "
            f"|u|^2 / d {ratio.mean():.5f} (spread {ratio.std():.5f})\n"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
