"""Direct feedback whose attention is differentiated exactly: cosines with the true gradient, and a short training.

    python docs/lab/2026-11-28-evidence/attention.py MODEL_FOLDER TRAIN.jsonl TEST.jsonl --task writing --steps 75

zolit does not have this. A mean Jacobian replaces each MLP with its norm, and autograd runs through attention. So the
gradient reaches queries, keys, values and other tokens. The Jacobians come from noise at the input of the MLPs of 16
batches. ``attention.csv`` gets the cosines of one batch, and ``attention-training.csv`` the losses of the test set. The
model is a Llama in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from problems import Problem
from run import HERE, append
from torch import Tensor, nn

from zolit.models.batches import Batch, TextBatch
from zolit.models.language_model import LanguageModel
from zolit.optim.feedback.equations import Equations

PARTS = ("mlp.down_proj", "self_attn.o_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.k_proj")
SHOWN = (29, 28, 26, 24, 20, 16, 12, 8, 4, 0)
NOISE = 0.05


class MeanBackward(torch.autograd.Function):
    """Computes an MLP with its norm, and sends the gradient back through a mean Jacobian."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, layer: nn.Module, jacobian: Tensor, down: Tensor) -> Tensor:
        """Returns the output of the MLP, shape (rows, tokens, d)."""
        with torch.no_grad():
            normed, mlp = layer.post_attention_layernorm(hidden), layer.mlp
            inner = mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed)
        ctx.save_for_backward(inner, jacobian)
        return inner @ down.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, Tensor]:
        """Returns the gradients by ``hidden``, through the mean Jacobian, and by ``down``, exactly."""
        inner, jacobian = ctx.saved_tensors
        return gradient @ jacobian, None, None, gradient.flatten(0, -2).T @ inner.flatten(0, -2)


class Study:
    """A model in float32, a task, and the mean Jacobians of the MLPs.

    Args:
        problem: The task.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.language: LanguageModel = problem.language(False, 0)
        self.model: Any = self.language.model.float()
        self.layers: Any = self.model.model.layers
        self.jacobians: list[Tensor] = []

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yields training batches without end."""
        for batch in self.problem.batches(seed):
            if isinstance(batch, TextBatch):
                self.language.prepare_texts(batch)
            yield batch

    def loss(self, batch: Batch) -> Tensor:
        """Returns the mean loss of a batch."""
        return self.problem.objective.losses(self.language, batch).mean()

    @torch.no_grad()
    def calibrate(self, batches: list[Batch]) -> None:
        """Learns the mean Jacobian of each MLP by least squares, as ``DirectFeedback`` does for whole layers."""
        equations: list[Equations] = []
        for batch in batches:
            seen: dict[int, Tensor] = {}
            with ExitStack() as hooks:
                for index, layer in enumerate(self.layers):
                    keep = _keeper(seen, index)
                    hooks.callback(layer.post_attention_layernorm.register_forward_pre_hook(keep).remove)
                self.loss(batch)
            equations = equations or [Equations(seen[index]) for index in range(len(self.layers))]
            for index, layer in enumerate(self.layers):
                hidden = seen[index]
                noise = NOISE * hidden.flatten(0, -2).std(0).median() * torch.randn_like(hidden)
                moved = _mlp(layer, hidden + noise) - _mlp(layer, hidden)
                u, w = noise[:, 1:].flatten(0, -2), moved[:, 1:].flatten(0, -2)
                equations[index].add(u, w, torch.ones(len(u), dtype=torch.bool))
        self.jacobians = [own.solved() for own in equations]

    @contextmanager
    def feedback(self, identity: bool = False) -> Iterator[None]:
        """Lets mean Jacobians, or 0, replace those of the MLPs."""
        for layer, jacobian in zip(self.layers, self.jacobians, strict=True):
            layer.forward = _forward(layer, torch.zeros_like(jacobian) if identity else jacobian)
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the gradient of each weight that has one."""
        self.model.zero_grad()
        self.loss(batch).backward()
        return {name: own.grad.clone() for name, own in self.model.named_parameters() if own.grad is not None}


def _keeper(seen: dict[int, Tensor], index: int) -> Any:
    return lambda module, inputs: seen.__setitem__(index, inputs[0])


def _mlp(layer: Any, hidden: Tensor) -> Tensor:
    return layer.mlp(layer.post_attention_layernorm(hidden))


def _forward(layer: Any, jacobian: Tensor) -> Any:
    def forward(hidden_states: Tensor, **options: Any) -> Tensor:
        attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **options)
        hidden = hidden_states + attended
        return hidden + MeanBackward.apply(hidden, layer, jacobian, layer.mlp.down_proj.weight)

    return forward


def cosines(study: Study, task: str) -> None:
    """Writes the cosines of one batch."""
    batch = next(islice(study.batches(0), 17, None))
    true = study.gradients(batch)
    for variant in ("mean Jacobian", "identity"):
        with study.feedback(variant == "identity"):
            found = study.gradients(batch)
        pairs = {(part, str(n)): [f"model.layers.{n}.{part}.weight"] for part in PARTS for n in SHOWN}
        for (part, layer), names in (pairs | {("all", ""): list(found)}).items():
            own, other = (torch.cat([side[name].flatten() for name in names]) for side in (found, true))
            row = [task, variant, part, layer, f"{float(torch.cosine_similarity(own, other, 0)):.3f}"]
            append(HERE / "attention.csv", ("task", "variant", "weights", "layer", "cosine"), row)


def train(study: Study, task: str, steps: int, lr: float) -> None:
    """Trains with Adam, and writes the loss and the score of the test set three times."""
    for name, weight in study.model.named_parameters():
        weight.requires_grad_(any(part in name for part in PARTS))
    adam = torch.optim.Adam([w for w in study.model.parameters() if w.requires_grad], lr, betas=(0.9, 0.99))
    with study.feedback():
        for step, batch in enumerate(islice(study.batches(0), steps)):
            adam.param_groups[0]["lr"] = lr * (1.0 - step / steps)
            study.model.zero_grad()
            study.loss(batch).backward()
            adam.step()
            if (step + 1) % (steps // 3) == 0:
                found = study.problem.evaluate(study.language, "test")
                row = [task, f"{lr:g}", step + 1, f"{found.loss:.4f}", f"{found.score:.4f}"]
                append(HERE / "attention-training.csv", ("task", "lr", "step", "loss", "score"), row)


def main() -> None:
    """Writes the rows of a task."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--task", default="writing")
    parser.add_argument("--steps", type=int, default=0, help="train for so many steps; 0 writes the cosines alone")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"), help="folder for the sentences")
    options = parser.parse_args()
    problem = Problem(
        options.task, options.model, options.train, options.test, options.work / f"attention-{options.task}"
    )
    study = Study(problem)
    study.calibrate(list(islice(study.batches(0), 16)))
    cosines(study, options.task)
    if options.steps:
        train(study, options.task, options.steps, options.lr)


if __name__ == "__main__":
    main()
