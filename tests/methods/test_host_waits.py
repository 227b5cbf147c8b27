"""How often the host would wait for a GPU in a step of each method, with a padded batch of a language model."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.battery import METHODS, made
from tests.helpers.host_waits import HostWaits
from tests.helpers.padded import batch, choices, language

WAITS: dict[str, int] = {
    # Losses, squared norms, sums of the pool; and a check of a weight that is sampled for the first time.
    **{name: 4 for name in METHODS if "curvzo" in name},
    "per example, by curvature": 2,
    "bszo, b": 2,
    "direct feedback, refreshed": 2,  # the loss of a correction's forward
    "mezo-gv": 2,
    "mezo-greedy": 2,
    "agzo": 2,  # the loss at θ is read before the directions are drawn
    "agzo, rank 2, two-sided": 2,
    "dominant layer": 2,  # a check that the layers before the perturbed one are the same
    "dominant layer, by curvature": 4,
    "hi-zfo": 2,
    "hi-zfo, profiled again": 35,  # every second step, one for each weight
    "sparse-mezo, refreshed": 31,  # the same
    "dizo, often": 6,
    # A weight moves only after the host has read that its gradient is finite.
    **dict.fromkeys(("first order, fused", "first order, sgd", "first order, factored"), 31),
    "first order, last layer": 10,
}
"""The largest number of waits in a step, where it is not one: for the losses."""


@pytest.mark.parametrize("name", METHODS)
def test_waits_of_a_step_with_a_padded_batch(name: str) -> None:
    made_language, rows = language(dtype=torch.float32), batch(2, 1)
    optimizer = made(name, made_language.model)
    closure = choices(made_language, rows)
    ids = {"examples": rows.prompt_index.tolist()} if optimizer.per_example else {}
    for _ in range(3 if name.startswith("fzoo") else 12):  # all weights have been perturbed, and checked, by then
        optimizer.step(closure, **ids)
    for _ in range(2):
        with HostWaits(made_language.model, rows) as found:
            optimizer.step(closure, **ids)
        assert 1 <= sum(found.waits.values()) <= WAITS.get(name, 1), found.waits


@pytest.mark.parametrize(
    ("read", "waits"),
    [
        (lambda weight: weight[weight > 0], 1),
        (lambda weight: weight.sum().item(), 1),
        (lambda weight: bool((weight > 0).all()), 1),
        (lambda weight: (2 * weight).sum(1).tolist(), 1),
        (lambda weight: (weight > 0).nonzero(), 1),
        (lambda weight: weight.cpu().tolist(), 1),  # what was copied is on the host
        (lambda weight: weight[torch.tensor([0, 1])].masked_fill(weight[:2] > 0, 0.0), 0),
        (lambda weight: torch.ones(3).sum().item(), 0),
    ],
)
def test_a_wait_is_seen(read: object, waits: int) -> None:
    """In code that is said to be that of a stage."""
    assert callable(read)
    read.__code__ = read.__code__.replace(co_filename="/zolit/optim/perturbation/law.py")
    model = torch.nn.Linear(3, 3)
    with torch.no_grad(), HostWaits(model) as found:
        read(model.weight)
    assert sum(found.waits.values()) == waits
