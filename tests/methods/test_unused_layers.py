"""Several ranks exchange as many numbers whatever layers the batch of each rank uses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zolit import AGZO, PerExample, ZerothOrder, ZOAct
from zolit.optim.collectives import Collectives


class Routed(nn.Module):
    """A model in which each batch uses one or two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])
        self.head = nn.Linear(3, 1, bias=False)

    def forward(self, inputs: Tensor, count: int) -> Tensor:
        hidden = sum(expert(inputs) for expert in self.experts[:count])
        return self.head(torch.tanh(hidden)).mean((1, 2)).square()


class Counted(Collectives):
    """Collectives of two ranks that record how many numbers this rank sends."""

    size = 2

    def __init__(self, first: list[Tensor] | None = None) -> None:
        self.sent: list[int] = []
        self.said: list[Tensor] = []
        self._first = first

    def all_gather(self, own: Tensor) -> Tensor:
        self.sent.append(own.numel())
        return torch.cat([own, own + 7 if own.dtype == torch.int64 else own], dim=-1)

    def broadcast(self, own: Tensor) -> Tensor:
        self.sent.append(own.numel())
        self.said.append(own.clone())
        return own if self._first is None else self._first[len(self.said) - 1]


@pytest.mark.parametrize(
    ("method", "options"), [(AGZO, {"rank": 2}), (ZOAct, {}), (PerExample, {}), (PerExample, {"guided": False})]
)
def test_ranks_send_as_much_with_other_layers(method: type[ZerothOrder], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    inputs, sent, first = torch.randn(3, 2, 4), [], None
    for count in (1, 2):
        model = Routed()
        optimizer = method(model, lr=1e-3, **options)
        collectives = optimizer.collectives = Counted(first)
        optimizer.step(lambda model=model, count=count: model(inputs, count), examples=[4, 5, 6])
        sent.append(collectives.sent)
        first = collectives.said
        if method is AGZO:  # the rank with two experts takes the subspaces of the first rank
            used = {weight.name for weight in optimizer.perturbation._bases}
            assert used == {"experts.0.weight", "head.weight"}
    assert sent[0] == sent[1] != []
