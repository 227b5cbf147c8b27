"""The rows of a linear probe: what they replace, which weights they leave unchanged, and how they are merged."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.helpers.classifier import Classifier, batch
from tests.helpers.tiny import same, weights_of
from zolit import UserError
from zolit.optim.modules.answer_head import (
    attach_probe,
    attach_probe_from_state,
    check_words,
    head_inputs,
    merge_probe,
    probed_head,
    tell_words,
)

WORDS = [2, 7, 3]
IDS, _ = batch(range(4), 3)
OTHERS = [word for word in range(11) if word not in WORDS]


def probed(tied: bool, dtype: torch.dtype = torch.float32) -> Classifier:
    model = Classifier(tied).to(dtype)
    attach_probe(model, WORDS)
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_probe_answers_as_the_model_did(tied: bool, dtype: torch.dtype) -> None:
    model = Classifier(tied).to(dtype)
    plain, before = model(IDS), weights_of(model)
    attach_probe(model, WORDS)
    torch.testing.assert_close(model(IDS), plain)
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {"head.zo_probe"}
    assert model.head.zo_probe.dtype == torch.float32
    after = weights_of(model)
    assert same({name: after[name] for name in before}, before)


@pytest.mark.parametrize("tied", [False, True])
def test_only_the_logits_of_the_words_change(tied: bool) -> None:
    model = probed(tied)
    plain = model(IDS).detach()
    with torch.no_grad():
        model.head.zo_probe.mul_(2.0)
    moved = model(IDS).detach()
    assert torch.equal(moved[..., OTHERS], plain[..., OTHERS])
    torch.testing.assert_close(moved[..., WORDS], 2.0 * plain[..., WORDS])


def test_autocast_does_not_round_the_probe() -> None:
    model = probed(tied=False)
    with torch.no_grad():
        model.head.zo_probe.normal_(generator=torch.Generator().manual_seed(1))
        expected = model(IDS)[..., WORDS]
        with torch.autocast("cpu", torch.bfloat16), head_inputs(model.head) as inputs:
            found = model(IDS)[..., WORDS]
    (hidden,) = inputs
    exact = hidden.float() @ model.head.zo_probe[:, :-1].T + model.head.zo_probe[:, -1]
    assert torch.equal(found, exact.to(found.dtype))
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("tied", [False, True])
def test_a_merged_head_computes_the_same(tied: bool) -> None:
    model = probed(tied)
    model.config = SimpleNamespace(tie_word_embeddings=tied)
    with torch.no_grad():
        model.head.zo_probe.normal_(generator=torch.Generator().manual_seed(1))
    before, embedding = model(IDS), model.embed.weight.clone()
    merge_probe(model)
    torch.testing.assert_close(model(IDS), before)
    assert torch.equal(model.embed.weight, embedding)
    assert probed_head(model) is None
    assert set(model.state_dict()) == set(Classifier().state_dict()) - ({"head.bias"} if tied else set())
    assert not model.config.tie_word_embeddings


def test_a_probe_is_attached_from_a_state() -> None:
    model = probed(tied=True)
    with torch.no_grad():
        model.head.zo_probe.add_(1.0)
    fresh = Classifier(tied=True)
    attach_probe_from_state(fresh, model.state_dict())
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(IDS), model(IDS))
    kept = fresh.head.zo_probe
    attach_probe(fresh, WORDS)
    assert fresh.head.zo_probe is kept
    with pytest.raises(UserError, match=r"is for the label words with the tokens \[2, 7, 3\]"):
        attach_probe(fresh, [2, 3])
    check_words(Classifier().state_dict(), None)  # a model without a probe fits every task
    with pytest.raises(UserError, match="this task has other ones"):
        check_words(fresh.state_dict(), None)


def test_refusals() -> None:
    with pytest.raises(UserError, match="LinearProbe needs a task whose answers are the same label words"):
        attach_probe(Classifier())
    told = Classifier()
    tell_words(told, torch.tensor([1, 4]))
    attach_probe(told)
    assert told.head.zo_probe_words.tolist() == [1, 4]
    with pytest.raises(UserError, match="says which module is its output head"):
        attach_probe(nn.Linear(2, 2), WORDS)
    quantised = Classifier()
    quantised.head.weight = nn.Parameter(torch.zeros(11, 6, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UserError, match=r"the output head is quantised \(torch.int8\)"):
        attach_probe(quantised, WORDS)
