"""Compares the knapsack with brute force, and the training of both sets of weights with their own methods."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from tests.helpers.tiny import layered, regression, same, weights_of
from zolit import FirstOrder, HiZFO, MeZO, UserError
from zolit.optim.base_point import BasePoint
from zolit.optim.blocks import partition, trainable_weights
from zolit.optim.collectives import Collectives
from zolit.optim.randomness import Step
from zolit.optim.selection.knapsack import Knapsack, best_set


def cost_of(chosen: tuple[int, ...], own: list[int], passing: list[int]) -> int:
    return sum(own[k] for k in chosen) + sum(passing[: max(chosen) + 1]) if chosen else 0


@pytest.mark.parametrize("seed", range(60))
def test_against_brute_force(seed: int) -> None:
    draw = random.Random(seed)
    count = draw.randint(1, 9)
    importance = [draw.uniform(-0.3, 1.0) for _ in range(count)]
    own, passing = ([draw.randint(0, 12) for _ in range(count)] for _ in range(2))
    budget = draw.randint(0, 60)
    sets = itertools.chain.from_iterable(itertools.combinations(range(count), size) for size in range(count + 1))
    best = max(sum(importance[k] for k in chosen) for chosen in sets if cost_of(chosen, own, passing) <= budget)
    found = tuple(best_set(importance, own, passing, budget))
    assert cost_of(found, own, passing) <= budget
    assert sum(importance[k] for k in found) == pytest.approx(best)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_profiling_restores_weights_to_the_bit(dtype: torch.dtype) -> None:
    model = layered(dtype)
    selection = Knapsack(0.5)
    weights = trainable_weights(model)
    selection.bind(model, weights, partition(weights))
    before = weights_of(model)
    base = BasePoint(model, regression(model), Collectives(), Step(0, 0), 0.0)
    chosen = selection.first_order(base)
    assert same(weights_of(model), before)
    assert 0 < len(chosen) < 9
    assert (base.backward_passes, len(base.losses)) == (2, 2)


def test_a_full_budget_is_first_order_and_an_empty_one_is_mezo() -> None:
    models = [layered() for _ in range(4)]
    closures = [regression(model) for model in models]
    optimizers = [
        HiZFO(models[0], lr=1e-3, budget=1.0),
        FirstOrder(models[1], lr=1e-3),
        HiZFO(models[2], lr=1e-3, budget=0.0),
        MeZO(models[3], lr=1e-3),
    ]
    for _ in range(4):
        for optimizer, closure in zip(optimizers, closures, strict=True):
            optimizer.step(closure)
    first, second, third, fourth = map(weights_of, models)
    harmful = {name for name in first if not torch.equal(first[name], second[name])}
    assert len(harmful) <= 2  # tensors of negative importance get no gradient
    assert same(third, fourth)


def test_first_order_and_perturbed_weights_move_as_in_their_own_methods() -> None:
    """First-order tensors move as in torch's AdamW, the others as in MeZO; the gradient and Δ are taken at θ."""
    model, twin = layered(), layered()
    closure, other = regression(model), regression(twin)
    optimizer = HiZFO(model, lr=1e-3, budget=0.5, zo_share=0.5)
    optimizer.step(closure)
    chosen = {name for name, is_zo in zip(*_chosen(optimizer), strict=True) if not is_zo}
    assert 0 < len(chosen) < 9
    adam = torch.optim.AdamW([p for n, p in twin.named_parameters() if n in chosen], lr=1e-3, weight_decay=0.0)
    other().mean().backward()
    adam.step()
    for name, theta in weights_of(twin).items():
        if name in chosen:
            torch.testing.assert_close(weights_of(model)[name], theta, rtol=1e-6, atol=1e-7)
    alone = layered()
    alone.requires_grad_(True)
    for name, parameter in alone.named_parameters():
        parameter.requires_grad_(name not in chosen)
    mezo = MeZO(alone, lr=5e-4)
    mezo.step(regression(alone))
    for name, theta in weights_of(alone).items():
        if name not in chosen:
            torch.testing.assert_close(weights_of(model)[name], theta, rtol=1e-5, atol=1e-6)


def _chosen(optimizer: HiZFO) -> tuple[tuple[str, ...], list[bool]]:
    report = optimizer.last_step.selection
    return report.names, report.chosen.tolist()


@pytest.mark.parametrize(("option", "value"), [("budget", 1.5), ("budget", -0.1), ("interval", -1)])
def test_out_of_range(option: str, value: float) -> None:
    with pytest.raises(UserError, match=option):
        HiZFO(layered(), **{option: value})
