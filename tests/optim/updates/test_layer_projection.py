"""DiZO's projections: along the displacement, within a radius, downhill, and undone if a loss is not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny import layered, same, weights_of
from zolit import DiZO, UserError


class Displaced(nn.Module):
    """Two weights; the loss is the squared distance of their means from a target."""

    def __init__(self, wanted: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.wanted = wanted
        self.first = nn.Parameter(torch.linspace(-1, 1, 20).to(dtype))
        self.second = nn.Parameter(torch.linspace(0, 3, 11).to(dtype))
        self.calls = 0

    def means(self) -> Tensor:
        return torch.stack([(self.first.float() - 1.0).mean() + 1.0, (self.second.float() - 2.0).mean() + 0.5])

    def forward(self) -> Tensor:
        self.calls += 1
        return (self.means() - self.wanted * torch.ones(2)).square().sum()


def displaced(
    wanted: float, dtype: torch.dtype = torch.float32
) -> tuple[Displaced, DiZO, dict[str, Tensor], dict[str, Tensor]]:
    """Returns a model whose weights moved by 1 and by 2 after the optimizer was made, before its first projection."""
    model = Displaced(wanted, dtype)
    inner = {"inner_steps": 20, "radius": 0.05, "inner_rate": 0.02, "clip": 0.3}
    optimizer = DiZO(model, lr=0.0, every=1, pattern="first|second", **inner)
    origins = weights_of(model)
    optimizer.step(model)
    with torch.no_grad():
        model.first.add_(1.0)
        model.second.add_(2.0)
    return model, optimizer, origins, weights_of(model)


@pytest.mark.parametrize(("wanted", "sign"), [(5.0, 1.0), (-5.0, -1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_projections_lower_the_loss_within_their_radius(wanted: float, sign: float, dtype: torch.dtype) -> None:
    model, optimizer, origins, before = displaced(wanted, dtype)
    model.calls = 0
    optimizer.step(model)
    assert model.calls == optimizer.last_step.forward_passes == 42
    for name, theta in weights_of(model).items():
        old, new = (before[name] - origins[name]).float(), (theta - origins[name]).float()
        ratio = float(new.norm() / old.norm())
        assert 0.7 - 1e-2 <= ratio <= 1.3 + 1e-2
        assert sign * (ratio - 1.0) > 0.05
        assert float(nn.functional.cosine_similarity(old, new, dim=0)) > (0.9999 if dtype == torch.float32 else 0.999)


@pytest.mark.parametrize("bad", [3, 40, 41, 42])
def test_a_loss_that_is_not_finite_undoes_the_projection(bad: int) -> None:
    """The loss occurs within the projection, or in the step's probes after it."""
    model, optimizer, _, before = displaced(5.0, torch.bfloat16)
    model.calls = 0
    with pytest.warns(RuntimeWarning, match="not all finite"):
        optimizer.step(lambda: model() * (math.nan if model.calls == bad else 1.0))
    assert optimizer.last_step.skipped
    assert same(weights_of(model), before)


def test_an_exception_undoes_the_projection() -> None:
    model, optimizer, _, before = displaced(5.0)
    model.calls = 0

    def broken() -> Tensor:
        loss = model()
        if model.calls == 7:
            raise KeyError
        return loss

    with pytest.raises(KeyError):
        optimizer.step(broken)
    assert same(weights_of(model), before)


@pytest.mark.parametrize(
    ("option", "value"),
    [("every", 0), ("inner_steps", 0), ("radius", 0.0), ("rate", -1.0), ("clip", 1.0), ("pattern", "nobody")],
)
def test_out_of_range(option: str, value: float | str) -> None:
    name = "inner_rate" if option == "rate" else option
    with pytest.raises(UserError, match=option):
        DiZO(layered(), **{"pattern": "weight", name: value})
