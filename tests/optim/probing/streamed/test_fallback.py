"""Models that bypass the attributes of modules are detected and probed in place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny import weights_of
from zolit import CurvZO, MeZO
from zolit.optim.randomness import Step


class Holder(nn.Module):
    """Reads its weight from a list, not from the module's attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.held = [self.weight]

    def forward(self) -> Tensor:
        return (self.held[0] * torch.tensor([1.0, 2.0, 3.0])).sum()


def test_falls_back_where_the_model_bypasses_attributes() -> None:
    runs = []
    for probing in ("streamed", "in_place"):
        model = Holder()
        optimizer = MeZO(model, lr=1e-2, probing=probing)
        if probing == "streamed":
            with pytest.warns(UserWarning, match="elsewhere than in its modules' attributes"):
                optimizer.step(model)
        else:
            optimizer.step(model)
        optimizer.step(model)
        runs.append((optimizer.last_step.losses, weights_of(model)))
    # The first step restores the weights from a copy, and the plain prober by arithmetic, which rounds.
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-6)
    for name, theta in runs[0][1].items():
        torch.testing.assert_close(theta, runs[1][1][name], rtol=1e-5, atol=1e-6)


def test_a_weight_is_checked_when_it_is_first_sampled() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = nn.Linear(3, 1)
            self.holder = Holder()

        def forward(self) -> Tensor:
            return self.plain(torch.ones(1, 3)).square().sum() + self.holder()

    model = Two()
    optimizer = CurvZO(model, budget=0.4, exploration=0.0, sampling="uniform", lr=1e-3)
    late = False
    for _ in range(20):
        sample = optimizer.selection.select(Step(0, optimizer.state_dict()["zo"]["steps"]))
        held = bool(sample.chosen[2])
        if held and not late:
            late = True
            with pytest.warns(UserWarning, match="elsewhere than in its modules' attributes"):
                optimizer.step(model)
        else:
            optimizer.step(model)
    assert late
    assert optimizer.prober._fallback is not None


def test_falls_back_where_the_closure_refuses_nan() -> None:
    model = Holder()

    def picky() -> Tensor:
        loss: Tensor = model()
        if not loss.isfinite():
            msg = "the loss must be finite"
            raise ValueError(msg)
        return loss

    optimizer = MeZO(model, lr=1e-2)
    with pytest.warns(UserWarning, match="raises ValueError"):
        optimizer.step(picky)
    assert len(set(optimizer.last_step.losses)) == 2


def test_compiled_code_that_reads_memory_is_detected() -> None:
    """Compiled code does not call ``__torch_function__``."""
    with torch.jit.optimized_execution(False):
        product = torch.jit.CompilationUnit("def f(x, w):\n    return x @ w\n").f
    model, inputs = nn.Linear(6, 6), torch.randn(3, 6)
    optimizer = MeZO(model, lr=1e-6, eps=1e-1)
    with pytest.warns(UserWarning, match="they are moved in place"):
        optimizer.step(lambda: product(inputs, model.weight).square().mean() + model.bias.sum())
    assert len(set(optimizer.last_step.losses)) == 2
