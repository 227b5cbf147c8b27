"""Correlates the scores of per-example derivatives with true gradients, block by block.

    python docs/lab/2026-11-22-per-example-scores/run.py MODEL_FOLDER REVIEWS.jsonl --steps 150

A backward pass for each example, in float32, gives true gradients. The script prints how aligned they are. Then it
makes steps with a learning rate of 0. Each step perturbs a random half of the blocks. Every block gets two mean scores:
CurvZO's (27) and the unbiased one (41). The script prints rank correlations every 50 steps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from zolit import PerExample
from zolit.optim import BlockSample, Directions, FixedBudget, Step, UniformSampling
from zolit.optim.selection.curvature.formulas import curvature_score, unbiased_score


class ScoreSums(UniformSampling):
    """Selects a random half of the blocks and sums both scores of every step."""

    def __init__(self) -> None:
        super().__init__(FixedBudget(0.5), None)
        self.sums: dict[str, Tensor] = {}

    def select(self, step: Step) -> BlockSample:
        """Draws the blocks and requests their squared norms."""
        return replace(super().select(step), needs_squared_norms=True)

    def observe(
        self, sample: BlockSample, directions: Directions, derivatives: Sequence[float], squared_norms: Tensor
    ) -> None:
        """Adds the scores of a step to the sums. Called once a step, after the estimate."""
        sizes = self.sizes.double()
        for derivative, squared_norm in zip(derivatives, squared_norms, strict=True):
            scores = {
                "curvzo (27)": curvature_score(derivative, squared_norm) / sample.probabilities,
                "unbiased (41)": unbiased_score(derivative, squared_norm, sample.probabilities, sizes),
            }
            for name, score in scores.items():
                self.sums[name] = self.sums.get(name, torch.zeros_like(score)) + score


def ranks(values: Tensor) -> Tensor:
    """Returns the rank of each value; the ranks are centered and have length 1."""
    order = values.argsort().argsort().double()
    return torch.nn.functional.normalize(order - order.mean(), dim=0)


def main() -> None:
    """Prints the alignment of the gradients and the rank correlations of the scores."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("reviews", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    records: list[dict[str, Any]] = [json.loads(line) for line in options.reviews.read_text().splitlines()[:16]]
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer([f"{record['sentence']} It was" for record in records], return_tensors="pt", padding=True)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    words = [tokenizer(word)["input_ids"][0] for word in (" terrible", " great")]
    labels = torch.tensor([record["label"] for record in records])

    def losses() -> Tensor:
        logits = model(**batch, position_ids=positions, logits_to_keep=1, use_cache=False).logits[:, -1, words]
        return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")

    scores = ScoreSums()
    optimizer = PerExample(model, lr=0.0, eps=1e-3, guided=False, selection=scores)
    parameters = [weight.parameter for block in optimizer.blocks for weight in block.weights]
    every = losses()
    total = [torch.zeros_like(parameter) for parameter in parameters]
    squared_norms = torch.zeros(len(parameters), dtype=torch.float64)
    for loss in every:
        for index, gradient in enumerate(torch.autograd.grad(loss, parameters, retain_graph=True)):
            total[index] += gradient / len(labels)
            squared_norms[index] += gradient.double().square().sum() / len(labels)
    mean = torch.stack([gradient.double().square().sum() for gradient in total])
    count, share = len(labels), float(mean.sum() / squared_norms.sum())
    print(f"alignment of the examples' gradients: {(count * share - 1) / (count - 1):.3f}")
    print(f"variance against MeZO's: {1 / (count * share):.3f}")
    del every
    sizes = torch.tensor([block.numel for block in optimizer.blocks]).double()
    for step in range(options.steps):
        optimizer.step(losses)
        if (step + 1) % 50 == 0:
            for name, score in scores.sums.items():
                found = {
                    "gradient of the mean": mean, "gradients of examples": squared_norms, "size": sizes,
                }  # fmt: skip
                correlations = {what: f"{float(ranks(score) @ ranks(value)):+.2f}" for what, value in found.items()}
                top = score.topk(20).indices
                held = float(mean[top].sum() / mean.topk(20).values.sum())
                print(step + 1, name, correlations, f"top 20 hold {held:.2f} of what the best 20 do", flush=True)
    print("gradient against size", f"{float(ranks(mean) @ ranks(sizes)):+.2f}")


if __name__ == "__main__":
    main()
