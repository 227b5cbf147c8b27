from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny import layered, linear_loss, regression, same, weights_of
from zolit import CurvZO, MeZO
from zolit.optim.blocks import Weight
from zolit.optim.updates import sgd
from zolit.optim.updates.sgd import groups


def flat_loss(model: nn.Module) -> Callable[[], Tensor]:
    """Returns a loss that does not depend on the weights: Δ = 0, and only decay and momentum move weights."""
    return lambda: torch.ones(3)


def test_decay_shrinks_matrices_and_not_vectors() -> None:
    model = layered(torch.float64)
    before = weights_of(model)
    MeZO(model, lr=0.1, weight_decay=0.5).step(flat_loss(model))
    for name, after in weights_of(model).items():
        factor = 1.0 - 0.1 * 0.5 if before[name].ndim > 1 else 1.0
        assert torch.allclose(after, factor * before[name], rtol=1e-12), name


def test_decay_reaches_blocks_that_were_not_sampled() -> None:
    model = layered(torch.float64)
    before = weights_of(model)
    optimizer = CurvZO(model, lr=0.1, weight_decay=0.5, budget=0.2)
    optimizer.step(flat_loss(model))
    assert not optimizer.last_step.selection.chosen.all()
    assert torch.allclose(model.head.weight, 0.95 * before["head.weight"], rtol=1e-12)
    assert torch.allclose(model.embed.weight, 0.95 * before["embed.weight"], rtol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_momentum_is_the_heavy_ball(decay: float) -> None:
    """v ← μv + ĝ and θ ← θ - ηv, compared with the steps of an optimizer without momentum on a linear loss."""
    plain, heavy = linear_loss([4, 3]), linear_loss([4, 3])
    first, second = MeZO(plain, lr=1.0, eps=1.0), MeZO(heavy, lr=0.1, eps=1.0, momentum=0.9, weight_decay=decay)
    velocity = {name: torch.zeros_like(g) for name, g in heavy.gradients.items()}
    for _ in range(10):
        before = weights_of(heavy)
        first.step(plain)
        second.step(heavy)
        after = weights_of(heavy)
        for name, move in plain.get().items():
            velocity[name] = 0.9 * velocity[name] - move
            assert torch.allclose(after[name], before[name] - 0.1 * velocity[name], rtol=1e-5, atol=1e-5)


def test_decay_enters_the_velocity() -> None:
    model = layered(torch.float64)
    before = weights_of(model)
    optimizer = MeZO(model, lr=0.1, momentum=0.5, weight_decay=0.2)
    optimizer.step(flat_loss(model))
    once = 1 - 0.1 * 0.2
    assert torch.allclose(model.head.weight, once * before["head.weight"])
    optimizer.step(flat_loss(model))
    twice = once - 0.1 * (0.5 * 0.2 + 0.2 * once)
    assert torch.allclose(model.head.weight, twice * before["head.weight"])


def test_momentum_moves_blocks_that_were_not_sampled() -> None:
    model = layered(torch.float64)
    optimizer = CurvZO(model, lr=1e-4, momentum=0.9, budget=0.4)
    closure = regression(model)
    ever = torch.zeros(9, dtype=torch.bool)
    carried = 0
    for _ in range(20):
        before = weights_of(model)
        optimizer.step(closure)
        report = optimizer.last_step.selection
        after = weights_of(model)
        ever |= report.chosen
        for name, chosen, once in zip(report.names, report.chosen.tolist(), ever.tolist(), strict=True):
            assert torch.equal(after[name], before[name]) == (not once), name
            carried += once and not chosen
    assert carried > 20


def test_blocks_that_were_not_sampled_are_not_touched() -> None:
    """They are equal to the bit, also in float32, where moving and restoring them would change the last bits."""
    model = layered()
    optimizer = CurvZO(model, lr=1e-2, budget=0.4)
    closure = regression(model)
    for _ in range(20):
        before = weights_of(model)
        optimizer.step(closure)
        report = optimizer.last_step.selection
        after = weights_of(model)
        for name, chosen in zip(report.names, report.chosen.tolist(), strict=True):
            assert torch.equal(before[name], after[name]) == (not chosen), name


@pytest.mark.filterwarnings("ignore:step. eps. .* is rounded away")  # the tiny model has large weights
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_rounding_keeps_updates_that_nearest_drops(dtype: torch.dtype) -> None:
    """The decay is 1/30 of a unit a step: after 300 steps ten units, or nothing."""
    unit = torch.finfo(dtype).eps
    ends = {}
    for rounding in ("stochastic", "nearest"):
        model = nn.Linear(64, 32, bias=False, dtype=dtype)
        nn.init.constant_(model.weight, 1.5)
        optimizer = MeZO(model, lr=1e-2, weight_decay=unit / 0.45, update_rounding=rounding)
        for _ in range(300):
            optimizer.step(flat_loss(model))
        ends[rounding] = model.weight.detach().double() - 1.5
    assert float(ends["nearest"].abs().max()) == 0.0
    assert float(ends["stochastic"].mean()) == pytest.approx(-10 * unit, rel=0.05)


def test_velocities_of_16_bit_weights_are_float32() -> None:
    model = layered(torch.bfloat16)
    optimizer = MeZO(model, lr=1e-3, momentum=0.9)
    optimizer.step(regression(model))
    velocities = optimizer.state_dict()["zo"]["update"]["velocities"]
    assert set(velocities) == {name for name, _ in model.named_parameters()}
    assert {velocity.dtype for velocity in velocities.values()} == {torch.float32}


def test_nothing_is_kept_without_momentum() -> None:
    model = layered()
    optimizer = MeZO(model, lr=1e-6, weight_decay=0.1)
    optimizer.step(regression(model))
    assert optimizer.state_dict()["zo"]["update"]["velocities"] == {}


@pytest.mark.parametrize("lr", [0.0, 1e-2])
def test_same_seed_same_run_other_seed_other_run(lr: float) -> None:
    runs = []
    for seed in (0, 0, 1):
        model = layered(torch.bfloat16)
        optimizer = MeZO(model, lr=lr, seed=seed)
        for _ in range(5):
            optimizer.step(regression(model))
        runs.append(weights_of(model))
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2]) == (lr == 0.0)


def meta(name: str, numel: int, dtype: torch.dtype = torch.bfloat16) -> Weight:
    return Weight(name, nn.Parameter(torch.empty(numel, dtype=dtype, device="meta")), 0)


def test_pieces_are_grouped_on_devices_with_slow_launches() -> None:
    most = 1 << 22
    a, b, c, d = meta("a", most - 8), meta("b", 8), meta("c", 8), meta("d", 8, torch.float32)
    pieces = [(a, 0, most - 8), (b, 0, 8), (c, 0, 4), (c, 4, 8), (d, 0, 8)]
    assert list(groups(pieces)) == [pieces[:2], pieces[2:4], pieces[4:]]
    here = Weight("e", nn.Parameter(torch.zeros(8)), 0)
    assert list(groups([(here, 0, 4), (here, 4, 8)])) == [[(here, 0, 4)], [(here, 4, 8)]]
    assert list(groups([])) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_groups_move_weights_as_single_pieces_do(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """The results are equal to the bit without stochastic rounding, else up to one unit in the last place."""
    runs = []
    for together in (False, True):
        if together:
            monkeypatch.setattr(sgd, "groups", lambda pieces: [pieces])
        model = layered(dtype)
        optimizer, closure = MeZO(model, lr=1e-2, momentum=0.5, weight_decay=0.1), regression(model)
        optimizer.step(closure)
        runs.append(weights_of(model))
    if dtype == torch.float32:
        assert same(*runs)
    limit = {torch.float32: 0.0, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[dtype]
    for name, value in runs[0].items():
        torch.testing.assert_close(runs[1][name], value, rtol=limit, atol=1e-6)
