"""All laws on weights of all shapes: numbers, single elements, single rows and columns, convolutions, nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.battery import FEEDBACK, METHODS, made
from tests.helpers.draws import weight, whole
from zolit import UserError
from zolit.optim.perturbation.base import Perturbation
from zolit.optim.perturbation.diagonal_curvature import DiagonalCurvature
from zolit.optim.perturbation.gaussian import Gaussian
from zolit.optim.perturbation.gaussian_pool import GaussianPool
from zolit.optim.perturbation.low_rank.activation_guided import ActivationGuided
from zolit.optim.perturbation.low_rank.activation_subspace import ActivationSubspace
from zolit.optim.perturbation.low_rank.lazy_low_rank import LazyLowRank
from zolit.optim.perturbation.low_rank.low_rank import LowRank
from zolit.optim.perturbation.low_rank.orthogonal_subspace import OrthogonalSubspace
from zolit.optim.perturbation.rademacher import Rademacher
from zolit.optim.randomness import Step, fold_in

LAWS: dict[str, Callable[[], Perturbation]] = {
    "gaussian": Gaussian,
    "pool": GaussianPool,
    "rademacher": Rademacher,
    "curvature": DiagonalCurvature,
    "low rank": LowRank,
    "low rank, 2": lambda: LowRank(2),
    "guided": ActivationGuided,
    "subspace": ActivationSubspace,
    "lazy": lambda: LazyLowRank(refresh=1),
    "orthogonal": lambda: OrthogonalSubspace(rank=2, refresh=1),
}
SHAPES = [(), (1,), (5,), (1, 1), (1, 4), (4, 1), (3, 2), (2, 2, 1, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LAWS)
def test_moments(name: str, shape: tuple[int, ...]) -> None:
    """E[u uᵀ] = I over steps and keys; numbers and vectors get dense numbers, and no products of two."""
    law, to = LAWS[name](), weight(*shape)
    law.bind(nn.Module(), [to], [])
    draws = []
    for step in range(130):
        law.begin_step(Step(0, step))
        for direction in range(6):
            key = fold_in(step, direction)
            if name == "guided" and len(shape) > 1:  # tokens that span the space: b is as that of LowRank
                width = to.parameter[0].numel()
                law.see_inputs(to, [key], (1.0 + 0.03) * torch.eye(width)[None], None)
            draws.append(whole(law, to, key).flatten().clone())
    u = torch.stack(draws).double()
    count = len(u)
    scale = 1.0 / (1.0 + 0.03) if name == "guided" and len(shape) > 1 else 1.0  # by its ridge
    # The square of a product of two normal numbers has the variance 8.
    assert float((u.T @ u / count - scale * torch.eye(u.shape[1])).abs().max()) < 5 * (8 / count) ** 0.5
    assert float(u.mean(0).abs().max()) < 5 / count**0.5
    if len(shape) < 2:
        assert float((u**4).mean()) < 4.5  # 3 for a normal number, 9 for the product of two


class Shapes(nn.Module):
    """A model with a parameter of each shape, also an empty one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 1), nn.Linear(1, 4, bias=False)])
        self.convolution = nn.Conv1d(1, 2, 3)
        self.scale = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.zeros(1))
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.head = nn.Linear(4, 1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.layers[1](torch.tanh(self.layers[0](inputs))) * self.scale + self.shift
        hidden = torch.cat([hidden, self.convolution(hidden.unsqueeze(1)).flatten(1)], dim=1)[:, -4:]
        return self.head(hidden)[:, 0] + self.nothing.sum()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_them_or_says_why_not(name: str) -> None:
    torch.manual_seed(0)
    model = Shapes()
    before = {key: value.clone() for key, value in model.named_parameters()}
    inputs = torch.randn(6, 4)
    optimizer = made(name, model)

    def losses() -> Tensor:
        return torch.square(model(inputs) - 1.0)

    if optimizer.per_example:
        with pytest.raises(UserError, match=r"(scale is used in mul|shift is used in add)"):
            optimizer.step(losses)
        return
    if name in FEEDBACK:
        with pytest.raises(UserError, match=r"pass their output on to the next layer, but layers\.1 is called"):
            optimizer.step(losses)
        return
    for _ in range(8):
        optimizer.step(losses)
    moved = [key for key, value in model.named_parameters() if key in before and not torch.equal(value, before[key])]
    assert moved or name in ("zo-act", "senszoq")
    assert "nothing" not in moved
