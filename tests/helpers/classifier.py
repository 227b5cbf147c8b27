"""A tiny model with an output head, labelled batches for it, and a logistic regression by Newton's method."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from zolit.optim import Answers

VOCABULARY, WIDTH, TOKENS = 11, 6, 5


class Classifier(nn.Module):
    """An embedding, a layer and a head over the vocabulary, which is tied to the embedding or has a bias."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=not tied)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        if tied:
            self.head.weight = self.embed.weight

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def hidden(self, ids: Tensor) -> Tensor:
        return torch.tanh(self.layer(self.embed(ids).cumsum(1)))

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden(ids))
        return logits


def batch(examples: range, classes: int) -> tuple[Tensor, Answers]:
    """Returns token ids and answers of some examples; an example is the same in every batch."""
    ids = torch.stack([torch.randint(VOCABULARY, (TOKENS,), generator=_generator(i)) for i in examples])
    labels = ids[:, -2] % classes
    return ids, Answers(torch.tensor(list(examples)), labels, torch.full((len(ids),), -1))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def closure(model: nn.Module, words: list[int], ids: Tensor, answers: Answers) -> Callable[[], Tensor]:
    """Returns a closure: the cross-entropy over the words, shape (batch,)."""

    def losses() -> Tensor:
        logits = model(ids)[:, -1, words].float()
        return functional.cross_entropy(logits, answers.classes, reduction="none")

    return losses


def newton(features: Tensor, classes: Tensor, count: int, penalty: Tensor) -> Tensor:
    """Minimizes Σ CE(P x, y) + ½ Σ penalty_j P_cj² by Newton's method with the dense Hessian; shape (count, d)."""
    width = features.shape[1]
    rows = torch.zeros(count * width, dtype=torch.float64)

    def objective(flat: Tensor) -> Tensor:
        table = flat.view(count, width)
        return (
            functional.cross_entropy(features @ table.T, classes, reduction="sum")
            + (penalty * table.square()).sum() / 2
        )

    for _ in range(50):
        gradient = torch.autograd.functional.jacobian(objective, rows)
        move = torch.linalg.solve(torch.autograd.functional.hessian(objective, rows), gradient)
        size = 1.0
        while objective(rows - size * move) > objective(rows):
            size /= 2
            if size < 1e-9:
                break
        rows = rows - size * move
    return rows.view(count, width)
