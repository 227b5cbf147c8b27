"""ZO-Act's coefficients: what they add, which weights they leave unchanged, and how they are merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import Fit, summary
from tests.helpers.tiny import same, weights_of
from zolit import UserError, ZerothOrder, ZOAct
from zolit.optim.modules.adapters import adapted_modules, attach, attach_from_state, merge_coefficients
from zolit.optim.perturbation.one_shot_basis import OneShotBasis


class Two(nn.Module):
    """An embedding that is tied to a head, with two layers between them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.up = nn.Linear(6, 9)
        self.down = nn.Linear(9, 6, bias=False)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.down(torch.tanh(self.up(self.embed(ids)))))


IDS = torch.arange(12).view(4, 3) * 5 % 7


def losses_of(model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(model(IDS)[:, -1].float(), IDS[:, 0], reduction="none")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_coefficients_move_and_nothing_else(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Two().to(dtype)
    plain, before = model(IDS), weights_of(model)
    optimizer = ZOAct(model, lr=1e-2, rank=2)
    assert torch.equal(model(IDS), plain)
    for _ in range(3):
        optimizer.step(lambda: losses_of(model))
    after = weights_of(model)
    assert same({name: after[name] for name in before}, before)
    assert set(adapted_modules(model)) == {"up", "down"}
    assert {weight.name for block in optimizer.blocks for weight in block.weights} == {
        "up.zo_coefficients",
        "down.zo_coefficients",
    }
    for module in adapted_modules(model).values():
        assert module.zo_coefficients.dtype == module.zo_basis.dtype == torch.float32
        torch.testing.assert_close(module.zo_basis @ module.zo_basis.t(), torch.eye(2), atol=1e-5, rtol=0)
    assert not torch.equal(model(IDS), plain)


def test_basis_is_that_of_the_first_batch() -> None:
    """The leading right singular vectors of the inputs, by one forward; later batches do not change it."""
    torch.manual_seed(0)
    model = Two()
    optimizer = ZOAct(model, lr=0.0)
    with torch.no_grad():
        inputs = model.embed(IDS).flatten(0, 1)
    optimizer.step(lambda: losses_of(model))
    assert optimizer.last_step.forward_passes == 3
    leading = torch.linalg.svd(inputs).Vh[0]
    assert abs(float(leading @ model.up.zo_basis[0])) > 0.99
    basis = model.up.zo_basis.clone()
    optimizer.step(lambda: nn.functional.cross_entropy(model(IDS.flip(0))[:, 0], IDS[:, 1]))
    assert optimizer.last_step.forward_passes == 2
    assert torch.equal(basis, model.up.zo_basis)


def test_estimate_is_the_gradient_within_the_basis() -> None:
    """Without Adam: E[ĝ] = G VᵀV in terms of the layer's weight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4, bias=False)).double()
    inputs = torch.randn(16, 5).double()
    gradient = torch.autograd.grad(model(inputs).sum(1).mean(), model[0].weight)[0]
    attach(model, 2)
    optimizer, found = ZerothOrder(model, lr=1.0, eps=1e-2, perturbation=OneShotBasis()), []
    for _ in range(600):
        optimizer.step(lambda: model(inputs).sum(1))
        found.append(-model[0].zo_coefficients.detach().double() @ model[0].zo_basis.double())
        with torch.no_grad():
            model[0].zo_coefficients.zero_()
    basis = model[0].zo_basis.double()
    expected = gradient @ basis.t() @ basis
    assert float((torch.stack(found).mean(0) - expected).norm()) < 0.35 * float(expected.norm())


def test_a_merged_model_computes_the_same() -> None:
    torch.manual_seed(0)
    model = Two()
    optimizer = ZOAct(model, lr=0.1, rank=3)
    for _ in range(4):
        optimizer.step(lambda: losses_of(model))
    outputs, names = model(IDS), set(Two().state_dict())
    merge_coefficients(model)
    torch.testing.assert_close(model(IDS), outputs, atol=1e-5, rtol=1e-5)
    assert set(model.state_dict()) == names
    assert not adapted_modules(model)


def test_coefficients_are_attached_from_a_state() -> None:
    torch.manual_seed(0)
    model = Two()
    optimizer = ZOAct(model, lr=0.1, rank=3)
    optimizer.step(lambda: losses_of(model))
    state, fresh = model.state_dict(), Two()
    attach_from_state(fresh, state)
    fresh.load_state_dict(state)
    assert torch.equal(fresh(IDS), model(IDS))
    kept = fresh.up.zo_coefficients
    ZOAct(fresh, rank=1)  # existing coefficients are kept, also with another rank
    assert fresh.up.zo_coefficients is kept


def test_validates_and_resumes_from_the_command(zolit: Fit, tmp_path: Path) -> None:
    method = ("--config=configs/method/zo-act.yaml", "--trainer.val_check_interval=4")
    zolit("fit", *method, "--trainer.max_steps=4", "--model.optimizer.lr=1e-2")
    figures = summary(tmp_path)
    cli = zolit("validate", method[0], f"--ckpt_path={figures['checkpoint']}")
    assert float(cli.trainer.callback_metrics["val/loss"]) == pytest.approx(figures["loss_after"], rel=1e-5)
    resumed = zolit("fit", *method, "--trainer.max_steps=6", f"--ckpt_path={figures['checkpoint']}")
    assert resumed.trainer.global_step == 6
    assert resumed.model.zo.last_step.forward_passes == 2


@pytest.mark.parametrize(("option", "options"), [("rank", {"rank": 0}), ("pattern", {"pattern": "nobody"})])
def test_out_of_range(option: str, options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=option):
        ZOAct(Two(), **options)
