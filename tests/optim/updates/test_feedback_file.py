"""Direct feedback with Jacobians from a file: no forwards with noise, and the same run each time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers.families import build
from tests.helpers.feedback import TEXTS, close, found, text_loss, true, word_loss
from tests.helpers.tiny import same, weights_of
from tests.optim.updates.test_feedback import linear_case
from zolit import DirectFeedback, UserError
from zolit.models.tuning import LoRA
from zolit.optim.feedback.calibration import Calibration, Measured
from zolit.optim.feedback.saved import write_jacobians


def calibrated(model: nn.Module, file: Path) -> str:
    calibration = Calibration(model)
    for index, ids in enumerate(TEXTS.split(2)):
        calibration.add(lambda own=ids: model(input_ids=own, use_cache=False).logits.square().mean(), index == 2)
    write_jacobians(file, calibration.solved(), model)
    return str(file)


def test_exact_jacobians_of_a_file_give_the_true_gradient(tmp_path: Path) -> None:
    """The only difference is the rounding of the file to 16 bits."""
    model, closure = linear_case()
    exact = [(layer.out.weight @ layer.into.weight).detach() for layer in model.layers]
    write_jacobians(tmp_path / "file", Measured(exact, [1.0] * 4, 1, 2), model)
    recorded, _ = found(model, closure, layers=4, jacobians=str(tmp_path / "file"))
    expected = true(model, closure)
    assert all(close(own, expected[name], 0.01) for name, own in recorded.items())
    identity, _ = found(model, closure, layers=4, calibration=0)
    assert not close(identity["layers.0.out.weight"], expected["layers.0.out.weight"], 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_with_a_file_are_equal(tmp_path: Path, dtype: torch.dtype) -> None:
    file = calibrated(build("llama").to(dtype), tmp_path / "file")
    runs = []
    for calibration in (16, 0):  # which a file replaces
        model, forwards = build("llama").to(dtype), []
        optimizer = DirectFeedback(model, lr=1e-3, jacobians=file, calibration=calibration)
        for _ in range(4):
            optimizer.step(word_loss(model))
            forwards.append(optimizer.last_step.forward_passes)
        assert forwards == [2, 1, 1, 1]  # the first step also looks for the writers
        runs.append(weights_of(model))
    assert same(*runs)
    model = build("llama").to(dtype)
    identity = DirectFeedback(model, lr=1e-3, calibration=0)
    for _ in range(4):
        identity.step(word_loss(model))
    assert not same(runs[0], weights_of(model))


def test_a_resumed_run_does_not_need_the_file(tmp_path: Path) -> None:
    """The weights have moved, so that the file would be of another model."""
    file = calibrated(build("llama"), tmp_path / "file")
    ends = []
    for resumed in (False, True):
        model = build("llama")
        optimizer = DirectFeedback(model, lr=1e-3, jacobians=file)
        optimizer.step(text_loss(model))
        if resumed:
            Path(file).unlink()
            state = optimizer.state_dict()
            optimizer = DirectFeedback(model, lr=1e-3, jacobians=file)
            optimizer.load_state_dict(state)
        optimizer.step(text_loss(model))
        assert optimizer.last_step.forward_passes == 1
        ends.append(weights_of(model))
    assert same(*ends)


def test_a_run_with_adapters_takes_the_file_of_the_base_model(tmp_path: Path) -> None:
    file = calibrated(build("llama"), tmp_path / "file")
    tuned = LoRA(rank=2, targets=["down_proj"]).apply(build("llama"))
    optimizer = DirectFeedback(tuned, jacobians=file)
    optimizer.step(word_loss(tuned))
    assert optimizer.last_step.forward_passes == 2
    (held,) = optimizer.update.state_dict()["jacobians"].items()
    assert held[0] == "base_model.model.model.layers.1"
    assert held[1].any()


def test_one_layer_needs_no_jacobians() -> None:
    model = build("llama")
    optimizer = DirectFeedback(model, layers=1, jacobians="there is no such file")
    optimizer.step(word_loss(model))
    assert not optimizer.last_step.skipped


def test_a_file_of_another_model_is_refused_before_a_weight_moves(tmp_path: Path) -> None:
    other = build("llama")
    with torch.no_grad():
        other.model.norm.weight[0] += 1.0
    file = calibrated(other, tmp_path / "file")
    model = build("llama")
    before = weights_of(model)
    with pytest.raises(UserError, match="other weights"):
        DirectFeedback(model, jacobians=file).step(word_loss(model))
    assert same(before, weights_of(model))
