"""Layers that a backward pass computes again give the same gradients to the bit, whatever the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import padded
from tests.helpers.families import CAUSAL, MASKED, build
from tests.helpers.tiny import layered, regression
from tests.models.test_families import MASKS, ROWS, prompts
from zolit import FirstOrder, UserError
from zolit.models.language_model import LanguageModel
from zolit.models.tuning import Full, LoRA, PrefixTuning, Tuning
from zolit.optim.base_point import BasePoint
from zolit.optim.blocks import trainable_weights
from zolit.optim.collectives import Collectives
from zolit.optim.modules.layers import find_layers
from zolit.optim.modules.recompute import recomputed_layers
from zolit.optim.randomness import Step
from zolit.tasks.classification import Classification
from zolit.training.objective import Objective

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about kernels that are not installed


def gradients(model: nn.Module, closure: Callable[[], Tensor], recompute: bool) -> tuple[dict[str, Tensor], int]:
    """Returns the gradients, and the number of calls of modules within layers."""
    base = BasePoint(model, closure, Collectives(), Step(0, 0), 0.0)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    inside = [module for layer in find_layers(model)[1] for module in layer.modules() if not list(module.children())]
    hooks = [module.register_forward_pre_hook(count) for module in dict.fromkeys(inside)]
    found = base.gradients(trainable_weights(model), recompute)
    for hook in hooks:
        hook.remove()
    return {weight.name: gradient for weight, gradient in found.items()}, calls


def assert_equal(model: nn.Module, closure: Callable[[], Tensor]) -> None:
    kept, once = gradients(model, closure, False)
    again, twice = gradients(model, closure, True)
    assert 0 < once < twice
    assert any(gradient.any() for gradient in kept.values())
    for name, gradient in kept.items():
        assert torch.equal(gradient, again[name]), name
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*CAUSAL, *MASKED])
def test_gradients_of_every_family(name: str, dtype: torch.dtype) -> None:
    language = LanguageModel(build(name).to(dtype), Full())
    objective, batch = Objective("task", Classification(), None), prompts(ROWS, MASKS if name in MASKED else [])
    assert_equal(language.model, lambda: objective.losses(language, batch))


@pytest.mark.parametrize("kind", ["llama", "opt"])
@pytest.mark.parametrize("tuning", [LoRA, lambda: PrefixTuning(tokens=3)], ids=["lora", "prefix"])
def test_gradients_of_every_tuning(kind: str, tuning: Callable[[], Tuning]) -> None:
    """Prefix tuning passes a cache, to which each layer adds."""
    language = padded.language(tuning(), kind=kind)
    assert_equal(language.model, padded.choices(language, padded.batch(2, 1)))


def test_forwards_without_gradients_are_plain() -> None:
    model = layered()
    with recomputed_layers(model), torch.no_grad():
        assert not regression(model)().requires_grad


def test_a_forward_that_other_code_replaced_is_used_and_stays() -> None:
    model = layered()
    layer = model.layers[0]
    own = layer.forward
    layer.forward = lambda hidden: own(hidden) + 1.0
    mine = layer.forward
    plain = regression(model)().detach()
    with recomputed_layers(model):
        assert torch.equal(regression(model)().detach(), plain)
        assert layer.forward is not mine
    assert layer.forward is mine


def test_a_model_without_layers() -> None:
    model = nn.Linear(4, 1)
    with pytest.raises(UserError, match=r"recompute: the model has no nn\.ModuleList"):
        FirstOrder(model, recompute=True).step(lambda: model(torch.ones(2, 4)).mean())
