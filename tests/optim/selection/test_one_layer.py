"""The selection of one layer: the rule, the weights that move, and the layers that are computed once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.helpers.tiny import layered, regression, weights_of
from zolit import DominantLayer, UserError, ZerothOrder
from zolit.optim.selection.all_blocks import AllBlocks
from zolit.optim.selection.base import Selection
from zolit.optim.selection.curvature.budget import FixedBudget
from zolit.optim.selection.curvature.parameter_sampling import ParameterSampling
from zolit.optim.selection.curvature.published_sampling import PublishedSampling
from zolit.optim.selection.curvature.sampling import CurvatureSampling, UniformSampling
from zolit.optim.selection.curvature.scores import BlockScores
from zolit.optim.selection.knapsack import Knapsack
from zolit.optim.selection.one_layer import OneLayer, _first_massive
from zolit.optim.selection.sensitive_weights import SensitiveWeights
from zolit.optim.selection.small_weights import SmallWeights


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(1, 0.5), (500, 0.2), (900, 0.2)], 1),  # the first of two massive ones
        ([(1, 0.5), (500, 0.6), (900, 0.2)], 2),  # the first is not 1,000 medians
        ([(1, 0.5), (50, 0.01), (60, 0.01)], 1),  # none is above 100: the largest growth
        ([(7, 1.0)], 0),
    ],
)
def test_rule(sizes: list[tuple[float, float]], expected: int) -> None:
    assert _first_massive(torch.tensor(sizes), 100.0, 1000.0) == expected


def test_only_the_layer_that_is_found_moves() -> None:
    torch.manual_seed(0)
    model = layered()
    with torch.no_grad():
        model.layers[1].bias[0] = 1e4
    before, closure = weights_of(model), regression(model)
    optimizer = DominantLayer(model, lr=1e-3)
    optimizer.step(closure)
    assert optimizer.last_step.forward_passes == 3
    optimizer.step(closure)
    assert optimizer.last_step.forward_passes == 2
    moved = {name for name, theta in before.items() if not torch.equal(theta, weights_of(model)[name])}
    assert moved == {"layers.1.weight", "layers.1.bias"}
    assert optimizer.last_step.selection.perturbed_parameters == 42


def test_layers_before_it_are_computed_once() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 23}
    model = AutoModelForCausalLM.from_config(LlamaConfig(intermediate_size=24, num_hidden_layers=6, **sizes)).eval()
    ids = torch.arange(20).view(4, 5) % 23

    def losses() -> Tensor:
        return nn.functional.cross_entropy(model(input_ids=ids).logits[:, -1], ids[:, 0], reduction="none")

    calls = [0] * 6
    for place, layer in enumerate(model.model.layers):

        def count(*_: object, place: int = place) -> None:
            calls[place] += 1

        layer.mlp.register_forward_hook(count)
    optimizer = DominantLayer(model, layer=4, lr=1e-2)
    for _ in range(3):  # the first steps trace the layers, and prove that reuse is sound
        optimizer.step(losses)
    calls[:] = [0] * 6
    optimizer.step(losses)
    assert calls == [1, 1, 1, 1, 2, 2]


def test_curvature_within_the_layer() -> None:
    model = layered()
    within = CurvatureSampling(FixedBudget(0.5), BlockScores(), exploration=0.1)
    optimizer, closure = DominantLayer(model, layer=0, within=within, lr=1e-3), regression(model)
    before, chosen = weights_of(model), set()
    for _ in range(20):
        optimizer.step(closure)
        report = optimizer.last_step.selection
        chosen |= {name for name, one in zip(report.names, report.chosen.tolist(), strict=True) if one}
        assert report.scores is not None
        assert bool((report.scores > 0).sum() == 2)
    assert chosen == {"layers.0.weight", "layers.0.bias"}
    moved = {name for name, theta in before.items() if not torch.equal(theta, weights_of(model)[name])}
    assert moved == chosen


INNER: dict[str, tuple[Callable[[], Selection], bool]] = {
    "all blocks": (AllBlocks, False),
    "uniform": (lambda: UniformSampling(FixedBudget(0.5), None), False),
    "curvature": (lambda: CurvatureSampling(FixedBudget(0.5), BlockScores(), exploration=0.1), False),
    "published": (PublishedSampling, False),
    "parameters": (lambda: ParameterSampling(FixedBudget(0.5)), True),
    "small weights": (lambda: SmallWeights(0.5), True),
    "sensitive weights": (lambda: SensitiveWeights(0.5), True),
}


@pytest.mark.parametrize("name", INNER)
def test_units_are_those_of_the_layer(name: str) -> None:
    """Layer 1 has two blocks of seven, and 42 parameters of 132. Scores are concentrated only if they are in it."""
    make, single = INNER[name]
    model = layered()
    optimizer, closure = ZerothOrder(model, lr=1e-4, selection=OneLayer(1, within=make())), regression(model)
    for _ in range(20):
        optimizer.step(closure)
    report = optimizer.last_step.selection
    inside = torch.tensor([block.startswith("layers.1.") for block in report.names])
    possible = report.probabilities > 0.0
    assert torch.equal(possible, inside)
    assert report.units == (42 if single else 2)
    own = (report.probabilities * report.sizes)[inside].sum() if single else report.probabilities[inside].sum()
    assert report.budget == pytest.approx(float(own), rel=0.5)
    assert report.budget <= report.units
    if report.effective_support is not None:
        assert report.effective_support / report.units > 0.1
    if name == "all blocks":
        assert report.clipped == 1.0


@pytest.mark.parametrize("within", [Knapsack, OneLayer])
def test_selections_of_the_whole_model_do_not_nest(within: type[Selection]) -> None:
    with pytest.raises(UserError, match=f"within: {within.__name__} chooses among the blocks of the whole model"):
        OneLayer(1, within=within())


def test_out_of_range() -> None:
    model = layered()
    with pytest.raises(UserError, match="layer: no block lies within layer 7"):
        DominantLayer(model, layer=7)
    with pytest.raises(UserError, match="layer"):
        DominantLayer(model, layer=-1)
    flat = nn.Linear(4, 1)
    with pytest.raises(UserError, match="selection: the model has no"):
        DominantLayer(flat)
    model.layers.requires_grad_(False)
    with pytest.raises(UserError, match="selection: no layer has a block of trainable weights"):
        DominantLayer(model)
