"""The state of an optimizer: handed out without a copy, copied when it is loaded, and whole."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.runs import assert_same
from tests.helpers.tiny import layered, regression, same, weights_of
from zolit import LOZO, DiZO, FirstOrder, HiZFO, HiZOO, MeZO, ZerothOrder
from zolit.optim import Perturbation, Rademacher, Streamed

METHODS = {
    "momentum": partial(MeZO, momentum=0.9),
    "adam": FirstOrder,
    "both": partial(HiZFO, budget=0.3, momentum=0.9),
    "dizo": partial(DiZO, every=2, inner_steps=1, pattern="layers", momentum=0.9),
    "hizoo": HiZOO,
}


def tensors(state: object) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    return [found for value in state.values() for found in tensors(value)] if isinstance(state, dict) else []


def clones(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: clones(value) for key, value in state.items()}
    return state.clone() if isinstance(state, Tensor) else state


@pytest.fixture(params=METHODS)
def make(request: pytest.FixtureRequest) -> Callable[..., ZerothOrder]:
    return partial(METHODS[request.param], lr=1e-3)


def trained(make: Callable[..., ZerothOrder], model: nn.Module, steps: int) -> ZerothOrder:
    optimizer = make(model)
    for _ in range(steps):
        optimizer.step(regression(model))
    return optimizer


def test_a_state_is_no_copy(make: Callable[..., ZerothOrder]) -> None:
    optimizer = trained(make, layered(), 2)
    first, second = (tensors(optimizer.state_dict()["zo"]) for _ in range(2))
    assert first
    assert [tensor.data_ptr() for tensor in first] == [tensor.data_ptr() for tensor in second]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_state_keeps_its_values(make: Callable[..., ZerothOrder], dtype: torch.dtype) -> None:
    """The source and the resumed run go on for the same steps; neither changes what the other has."""
    model = layered(dtype)
    source = trained(make, model, 3)
    state = source.state_dict()
    kept = clones(state)
    copy = layered(dtype)
    copy.load_state_dict(model.state_dict())
    resumed = make(copy)
    resumed.load_state_dict(state)
    for _ in range(3):
        resumed.step(regression(copy))
    assert_same(state, kept)
    for _ in range(3):
        source.step(regression(model))
    assert same(weights_of(model), weights_of(copy))
    assert_same(source.state_dict()["zo"], resumed.state_dict()["zo"])


class Elsewhere(nn.Module):
    """Holds a weight in a list, too, and computes with it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = layered(dtype)
        self.hidden = [self.inner.embed.weight]

    def forward(self, inputs: Tensor) -> Tensor:
        answer: Tensor = self.inner(inputs) + nn.functional.linear(inputs, self.hidden[0]).sum(1)
        return answer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"directions": 3}, {"probing": "joint"}], ids=str)
def test_a_model_that_is_probed_in_place_resumes_to_the_bit(dtype: torch.dtype, options: dict[str, Any]) -> None:
    make = partial(MeZO, lr=1e-3, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="probing: the model holds weights elsewhere")
        model = Elsewhere(dtype)
        optimizer = trained(make, model, 3)
    copy = Elsewhere(dtype)
    copy.load_state_dict(model.state_dict())
    resumed = make(copy)
    resumed.load_state_dict(optimizer.state_dict())
    for _ in range(5):
        optimizer.step(regression(model))
        resumed.step(regression(copy))
    assert same(weights_of(model), weights_of(copy))


def test_the_state_of_another_prober_is_taken() -> None:
    optimizer = trained(partial(MeZO, lr=1e-6, probing="in_place"), layered(), 1)
    resumed = MeZO(layered())
    resumed.load_state_dict(optimizer.state_dict())
    assert isinstance(resumed.prober, Streamed)
    assert resumed.prober.state_dict() == {"in_place": False}


@pytest.mark.parametrize("probing", ["streamed", "in_place"])
@pytest.mark.parametrize(
    ("method", "draws"),
    [
        (partial(MeZO, perturbation=Rademacher()), 3),
        (LOZO, 2),
        (HiZOO, 4),
    ],
)
def test_a_probe_draws_each_piece_of_16_bits_once(
    monkeypatch: pytest.MonkeyPatch, method: Callable[..., ZerothOrder], draws: int, probing: Any
) -> None:
    """Two probes and the update, or two probes and factors for the update, or a third use by the diagonal."""
    model = layered(torch.bfloat16)
    optimizer = method(model, lr=1e-3, probing=probing)
    optimizer.step(regression(model))
    counts: Counter[str] = Counter()
    law: Perturbation = optimizer.perturbation
    real = law.draw

    def counted(weight: Any, *args: Any) -> Any:
        counts[weight.name] += 1
        return real(weight, *args)

    monkeypatch.setattr(law, "draw", counted)
    optimizer.step(regression(model))
    assert counts["layers.0.weight"] == draws
