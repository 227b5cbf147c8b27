"""A step that means nothing is named before it is made, once."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers.tiny import layered, regression
from zolit import MeZO
from zolit.errors import UserError


class Functional(nn.Module):
    """Calls ``functional.dropout`` with a number of its own, as many models of transformers do."""

    def __init__(self, attention_dropout: float) -> None:
        super().__init__()
        self.attention_dropout = attention_dropout

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.dropout(inputs, self.attention_dropout, self.training)


NOISY: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.1),
    "alpha dropout": lambda: nn.AlphaDropout(0.1),
    "batch norm": lambda: nn.BatchNorm1d(4),
    "rrelu": nn.RReLU,
    "functional dropout": lambda: Functional(0.1),
    "dropout inside attention": lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
}
QUIET: dict[str, Callable[[], nn.Module]] = {
    "no dropout": lambda: nn.Dropout(0.0),
    "layer norm": lambda: nn.LayerNorm(4),
    "no functional dropout": lambda: Functional(0.0),
    "no statistics": lambda: nn.BatchNorm1d(4, track_running_stats=False),
}


def said(model: nn.Module, closure: Callable[[], Tensor], steps: int = 2, eps: float = 1e-3) -> list[str]:
    optimizer = MeZO(model, lr=0.0, eps=eps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            optimizer.step(closure)
    return [str(warning.message) for warning in caught]


def with_part(part: nn.Module) -> tuple[nn.Module, Callable[[], Tensor]]:
    model = nn.Sequential(nn.Linear(4, 4), part, nn.Linear(4, 1))
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    return model, lambda: model(inputs).square().mean()


@pytest.mark.parametrize("name", NOISY)
def test_a_model_in_training_mode(name: str) -> None:
    model, closure = with_part(NOISY[name]())
    (sentence,) = said(model, closure)
    assert "the model is in training mode, in which 1" in sentence
    assert "call model.eval()" in sentence
    model.eval()
    assert said(model, closure) == []


@pytest.mark.parametrize("name", QUIET)
def test_training_mode_without_effect(name: str) -> None:
    model, closure = with_part(QUIET[name]())
    assert said(model, closure) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_loss_of_16_bits(dtype: torch.dtype) -> None:
    model = layered(dtype)
    losses = regression(model)
    (sentence,) = said(model, lambda: losses().to(dtype), eps=1e-1)
    assert f"a loss of {str(dtype).removeprefix('torch.')}" in sentence
    assert said(model, losses, eps=1e-1) == []


@pytest.mark.parametrize(("dtype", "eps"), [(torch.bfloat16, 1e-4), (torch.float16, 1e-6), (torch.float32, 1e-9)])
def test_a_radius_below_the_resolution(dtype: torch.dtype, eps: float) -> None:
    model = layered(dtype)
    (sentence,) = said(model, regression(model), eps=eps)
    assert f"eps: {eps} is below the resolution of" in sentence
    assert said(model, regression(model), eps=1e-1) == []


def test_a_second_group_of_parameters_is_refused() -> None:
    optimizer = MeZO(layered())
    with pytest.raises(UserError, match="add_param_group: the weights are fixed"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    assert len(optimizer.param_groups) == 1
