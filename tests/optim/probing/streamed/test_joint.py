"""Two probes in one forward of a batch that is repeated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny import layered, regression
from tests.helpers.zoo import LAWS, zoo
from zolit import CurvZO, MeZO
from zolit.optim.perturbation.base import Perturbation


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("law", LAWS)
def test_joint_probes_measure_the_same_losses(law: Callable[[], Perturbation], directions: int) -> None:
    runs, calls = [], []
    for probing in ("joint", "streamed"):
        model, closure = zoo(torch.float64, batch_first=True)
        optimizer = MeZO(model, lr=1e-3, eps=1e-2, directions=directions, perturbation=law(), probing=probing)

        def repeated(closure: Any = closure, optimizer: Any = optimizer) -> Tensor:
            calls.append(optimizer.batch_repeats)
            return closure(calls[-1])

        for _ in range(3):
            optimizer.step(repeated, repeats_batch=True)
        runs.append(optimizer.last_step.losses)
    assert runs[0] == pytest.approx(runs[1], rel=1e-10)
    assert 2 in calls


def test_a_closure_that_does_not_repeat_its_batch_is_probed_singly() -> None:
    """The second step warns, once. The first probes of a weight are always single."""
    model = layered()
    optimizer, closure, repeats = MeZO(model, lr=1e-6, probing="joint"), regression(model), []

    def recorded() -> Tensor:
        repeats.append(optimizer.batch_repeats)
        return closure()

    optimizer.step(recorded)
    with pytest.warns(UserWarning, match="does not repeat its batch") as caught:
        optimizer.step(recorded)
    assert len(caught) == 1
    for _ in range(2):
        optimizer.step(recorded)  # pytest turns a second warning into an error
    assert repeats == [1] * 8
    assert optimizer.last_step.total_forward_passes == 8


def test_announced_copies_are_evaluated_in_one_forward() -> None:
    """The first step probes singly, and the second step checks a joint forward against single ones."""
    model = layered()
    optimizer, repeats = MeZO(model, lr=1e-6, probing="joint"), []
    inputs = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))

    def recorded() -> Tensor:
        repeats.append(optimizer.batch_repeats)
        return model(inputs.repeat(repeats[-1], 1)).square()

    for _ in range(2):
        optimizer.step(recorded, repeats_batch=True)
    checked = len(repeats)
    for _ in range(3):
        optimizer.step(recorded, repeats_batch=True)
    assert repeats[checked:] == [2] * 3
    assert optimizer.last_step.forward_passes == 2


class Mixing(nn.Module):
    """A model that mixes the examples of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs.flip(0)).flip(0).sum(1) + self.inner(inputs).mean()


def test_a_model_that_mixes_examples_is_probed_singly() -> None:
    model, inputs = Mixing(), torch.randn(4, 3)
    optimizer = MeZO(model, lr=1e-6, eps=1e-2, probing="joint")
    optimizer.step(lambda: model(inputs.repeat(optimizer.batch_repeats, 1)), repeats_batch=True)
    with pytest.warns(UserWarning, match="mixes the examples"):
        optimizer.step(lambda: model(inputs.repeat(optimizer.batch_repeats, 1)), repeats_batch=True)
    assert len(set(optimizer.last_step.losses)) == 2


@pytest.mark.parametrize("seed", range(3))
def test_joint_probes_of_partly_frozen_norms(seed: int) -> None:
    """CurvZO samples the weight of a norm without its bias: the bias that is not perturbed is no activation."""
    model, inputs = layered(seed=seed), torch.randn(8, 4)
    for parameter in model.head.parameters():
        parameter.requires_grad = False
    optimizer = CurvZO(model, lr=1e-6, probing="joint", eps=1e-2, budget=0.5, seed=seed)
    for batch in (8, 8, 8, 5, 8):
        part = inputs[:batch]
        optimizer.step(lambda part=part: model(part.repeat(optimizer.batch_repeats, 1)), repeats_batch=True)
    assert optimizer.prober._joint
    assert optimizer.last_step.forward_passes == 2


def test_positions_are_not_taken_for_examples() -> None:
    """Positions have shape (tokens,), as in nanoGPT, and their number is even."""
    torch.manual_seed(0)
    words, places, head = nn.Embedding(9, 6), nn.Embedding(6, 6), nn.Linear(6, 9)
    model = nn.ModuleList([words, places, head])
    ids = torch.randint(0, 9, (4, 6))

    def closure() -> Tensor:
        repeated = ids.repeat(optimizer.batch_repeats, 1)
        return head(words(repeated) + places(torch.arange(6))).square().mean((1, 2))

    optimizer = MeZO(model, lr=1e-6, probing="joint")
    optimizer.step(closure, repeats_batch=True)
    with pytest.warns(UserWarning, match="mixes the examples"):
        optimizer.step(closure, repeats_batch=True)
