"""Is noise that is cut from a pool as good as normal numbers drawn one by one, against a real gradient?

    python docs/studies/pool.py MODEL_FOLDER REVIEWS.jsonl

Takes the gradient g of a batch of labelled sentences by one backward pass in float32, draws directions u over all
weights from each law, and prints what theory says of s = ⟨u, g⟩ / ‖g‖ for u ~ N(0, I): mean 0, mean square 1, fourth
moment 3; that ‖u‖² is the number of weights; and that s of one step says nothing about s of the next.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

import zolit
from zolit.directions import Directions
from zolit.perturbation import Gaussian, GaussianPool

DIRECTIONS = 120
EXAMPLES = 16


def main(folder: str, reviews: str) -> None:
    """Prints a line for each law."""
    records = [json.loads(line) for line in Path(reviews).read_text(encoding="utf-8").splitlines()[:EXAMPLES]]
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokens = tokenizer([f"{record['sentence']} It was" for record in records], return_tensors="pt", padding=True)
    words = [tokenizer(word).input_ids[0] for word in (" terrible", " great")]
    labels = torch.tensor([int(record["label"]) for record in records])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    logits = model(**tokens, use_cache=False, logits_to_keep=1).logits[:, -1, words]
    functional.cross_entropy(logits, labels).backward()
    norm = float(torch.cat([parameter.grad.view(-1) for parameter in model.parameters()]).double().norm())
    for law in (GaussianPool(), Gaussian()):
        optimizer = zolit.MeZO(model, perturbation=law)
        choice = optimizer.selection.select(0)
        slopes, energies = [], []
        for step in range(DIRECTIONS):
            directions = Directions(optimizer.blocks, choice, law, 1, step, 1)
            slope = energy = 0.0
            for weight in directions.weights:
                gradient = weight.parameter.grad.view(-1)
                for start, stop in directions.ranges(weight):
                    u, factor = directions.draw(0, weight, start, stop)
                    slope += factor * float(gradient[start:stop] @ u)
                    energy += float(u @ u)
            slopes.append(slope / norm)
            energies.append(energy)
        s = torch.tensor(slopes, dtype=torch.float64)
        ratio = torch.tensor(energies, dtype=torch.float64) / sum(block.numel for block in optimizer.blocks)
        sys.stdout.write(
            f"{type(law).__name__}: mean {s.mean():+.3f} (± {DIRECTIONS**-0.5:.3f}), square {s.square().mean():.3f} "
            f"(± {(2 / DIRECTIONS) ** 0.5:.3f}), fourth {(s**4).mean():.2f} (± {(96 / DIRECTIONS) ** 0.5:.2f}), "
            f"next {(s[1:] * s[:-1]).mean():+.3f} (± {DIRECTIONS**-0.5:.3f}), "
            f"|u|^2 / d {ratio.mean():.5f} (spread {ratio.std():.5f})\n"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
