"""How direct feedback moves a weight by its S: with Adam, without state, or with a factored second moment."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.families import build
from tests.helpers.feedback import close, found, word_loss
from zolit import DirectFeedback
from zolit.errors import UserError

NAME = "model.layers.1.mlp.down_proj.weight"


def test_sgd_moves_a_weight_by_the_rate_times_its_s() -> None:
    model = build("llama")
    gradients, _ = found(model, word_loss(model), calibration=0)
    before = dict(model.named_parameters())[NAME].detach().clone()
    DirectFeedback(model, lr=0.5, calibration=0, rule="sgd").step(word_loss(model))
    moved = before - dict(model.named_parameters())[NAME].detach()
    assert close(moved.flatten(), 0.5 * gradients[NAME])


@pytest.mark.parametrize("rule", ["sgd", "factored"])
def test_rules_keep_little_state_and_lower_the_loss(rule: str) -> None:
    held = {}
    for name, lr in (("adam", 1e-3), (rule, {"sgd": 1e-1, "factored": 3e-3}[rule])):
        model = build("llama")
        loss = word_loss(model)
        optimizer = DirectFeedback(model, lr=lr, calibration=0, rule=name)
        first = optimizer.step(loss)
        for _ in range(5):
            last = optimizer.step(loss)
        assert last < first
        held[name] = optimizer.scratch_bytes()
    assert held[rule] < 0.3 * held["adam"]


def test_a_run_resumes_with_its_own_rule_alone() -> None:
    model = build("llama")
    optimizer = DirectFeedback(model, lr=1e-3, calibration=0, rule="factored")
    optimizer.step(word_loss(model))
    state = optimizer.state_dict()
    with pytest.raises(UserError, match="Feedback by Factored"):
        DirectFeedback(model, lr=1e-3, calibration=0).load_state_dict(state)
    runs = []
    for own in (optimizer, DirectFeedback(model, lr=1e-3, calibration=0, rule="factored")):
        own.load_state_dict(state)
        saved = {name: p.detach().clone() for name, p in model.named_parameters()}
        own.step(word_loss(model))
        runs.append({name: p.detach().clone() for name, p in model.named_parameters()})
        model.load_state_dict(saved, strict=False)
    assert all(torch.equal(runs[0][name], own) for name, own in runs[1].items())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_jacobians_are_kept_in_the_precision_of_the_model(kind: torch.dtype) -> None:
    model = build("llama").to(kind)
    optimizer = DirectFeedback(model, lr=1e-3, calibration=2, rule="sgd")
    optimizer.step(word_loss(model))
    kept = optimizer.state_dict()["zo"]["update"]["jacobians"]
    assert kept
    assert all(jacobian.dtype == kind for jacobian in kept.values())


def test_a_checkpoint_from_before_there_were_rules_is_that_of_adam() -> None:
    model = build("llama")
    optimizer = DirectFeedback(model, lr=1e-3, calibration=0)
    optimizer.step(word_loss(model))
    state = optimizer.state_dict()
    own = state["zo"]["update"]
    own["adam"] = own.pop("rule")
    resumed = DirectFeedback(model, lr=1e-3, calibration=0)
    resumed.load_state_dict(state)
    assert resumed.update.state_dict()["rule"]["moments"].keys() == own["adam"]["moments"].keys()
