"""The gradients of embeddings and heads of real architectures are those of autograd."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import padded
from tests.helpers.families import CAUSAL, MASKED, build
from tests.models.test_families import MASKS, ROWS, prompts
from tests.optim.test_arrivals import Tied, passed, words
from zolit.models.language_model import LanguageModel
from zolit.models.tuning import Full
from zolit.optim.modules.thin_gradients import ThinGradients
from zolit.tasks.classification import Classification
from zolit.training.objective import Objective

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about kernels that are not installed


@pytest.mark.parametrize("name", [*CAUSAL, *MASKED])
def test_every_family(name: str) -> None:
    language = LanguageModel(build(name), Full())
    objective, batch = Objective("task", Classification(), None), prompts(ROWS, MASKS if name in MASKED else [])
    found = passed(language.model, lambda: objective.losses(language, batch))
    loss = objective.losses(language, batch).mean()
    wanted = {key: weight for key, weight in language.model.named_parameters() if weight.requires_grad}
    expected = torch.autograd.grad(loss, list(wanted.values()), materialize_grads=True)
    assert found.keys() == wanted.keys()
    for key, own in zip(wanted, expected, strict=True):
        torch.testing.assert_close(found[key], own, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_answers_of_several_tokens(tied: bool) -> None:
    language = padded.language(tied=tied, dtype=torch.float32)
    closure = padded.choices(language, padded.batch(2, 1))
    found = passed(language.model, closure)
    names, weights = zip(*language.model.named_parameters(), strict=True)
    for name, own in zip(names, torch.autograd.grad(closure().mean(), weights), strict=True):
        torch.testing.assert_close(found[name], own, rtol=1e-4, atol=1e-6)


def test_autograd_forms_no_gradient_of_a_tied_embedding() -> None:
    model = Tied(tied=True)
    thin = ThinGradients(model, model.parameters())
    with thin.collected():
        words(model)().mean().backward()
    assert model.embed.weight.grad is None
    assert model.layers[0].weight.grad is not None
    assert not any("weight" in vars(module) for module in model.modules())
    assert thin.found[id(model.embed.weight)].rows(0, 60).shape == (60, 8)


def test_products_under_autocast_are_summed_in_float32() -> None:
    """The factors are of 16 bits, and their product is not rounded."""
    model = Tied(tied=False)
    closure = words(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = passed(model, closure)["head.weight"]
        inside = torch.autograd.grad(closure().mean(), model.head.weight)[0]
    torch.testing.assert_close(found, inside, rtol=0.05, atol=2e-3)
    assert not torch.equal(found, found.bfloat16().float())


def test_the_sum_of_many_uses_takes_no_more_memory_than_the_matrix() -> None:
    model = Tied(tied=True)
    thin = ThinGradients(model, model.parameters())
    closures = [words(model, seed=seed) for seed in range(30)]
    with thin.collected():
        torch.cat([closure() for closure in closures]).mean().backward()
    held = thin.found[id(model.embed.weight)]
    assert sum(term.numel for term in held._terms) <= model.embed.weight.numel()
    assert held._sum is not None
