"""Products with perturbed matrices of many pieces, and under autocast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.helpers.zoo import LAWS, zoo
from zolit import MeZO, ZerothOrder
from zolit.optim.buffers import CPU_CHUNK
from zolit.optim.perturbation.base import Perturbation
from zolit.optim.probing.in_place import InPlace
from zolit.optim.probing.streamed.prober import Streamed


@pytest.mark.parametrize("width", [64, 576])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("law", LAWS)
def test_matrices_of_many_pieces(law: Callable[[], Perturbation], dtype: torch.dtype, width: int) -> None:
    """A tied embedding and head of more than two chunks: rows are looked up, and products are formed piece by piece."""
    rows = 2 * CPU_CHUNK // width + 1500
    runs = []
    for probing in ("streamed", "in_place"):
        torch.manual_seed(0)
        embed, head = nn.Embedding(rows, width), nn.Linear(width, rows)
        head.weight = embed.weight
        model = nn.Sequential(embed, head).to(dtype)
        ids = torch.randint(0, rows, (5,))
        optimizer = MeZO(model, lr=1e-6, eps=1e-1, perturbation=law(), probing=probing)
        optimizer.step(lambda: model(ids).float().square().mean(1))  # noqa: B023  # called within this iteration
        runs.append(optimizer.last_step.losses)
    assert runs[0] == pytest.approx(runs[1], rel=1e-5 if dtype == torch.float32 else 1e-3)
    assert runs[0][0] != runs[0][1]


def test_autocast_sees_perturbed_weights() -> None:
    runs = []
    for prober in (Streamed(), InPlace()):
        model, closure = zoo()
        optimizer = ZerothOrder(model, eps=5e-2, prober=prober)
        with torch.autocast("cpu", torch.bfloat16):
            optimizer.step(closure)
        runs.append(optimizer.last_step.losses)
    assert runs[0] == pytest.approx(runs[1], rel=2e-2)
    assert abs(runs[0][0] - runs[0][1]) > 1e-3
