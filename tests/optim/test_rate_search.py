"""The choice of a learning rate, against closed forms on a quadratic."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zolit
from zolit.errors import UserError
from zolit.optim import SGD, SPSA, Adam, AllBlocks, BlockSample, Gaussian, Rate, Step, ZerothOrder, choose_rate
from zolit.optim.rate_search import NOISE, RISE, SHARE

NUMEL = 4096
CURVATURE = 3.0
SLOPE = 2.0


class Bowl(nn.Module):
    """L(θ) = h/2·‖θ‖² + ⟨g, θ⟩ at θ = 0, so that tr(H) = h·d and the gradient is g."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(64, NUMEL // 64))
        g = torch.randn(64, NUMEL // 64, generator=torch.Generator().manual_seed(1))
        self.g = SLOPE * g / g.norm()
        self.scale = scale

    def forward(self) -> Tensor:
        theta = self.theta.double()
        return self.scale * (0.5 * CURVATURE * theta.square().sum() + (self.g * theta).sum())


def made(model: nn.Module | None = None, **options: Any) -> tuple[ZerothOrder, nn.Module]:
    bowl = model or Bowl()
    return zolit.MeZO(bowl, **options), bowl


TRACE = CURVATURE * NUMEL


def test_the_radius_is_where_noise_raises_the_loss_by_the_given_amount() -> None:
    optimizer, bowl = made()
    rate = choose_rate(optimizer, [bowl], 10_000)
    assert rate.radius == pytest.approx(math.sqrt(2.0 * RISE / TRACE), rel=0.05)
    assert rate.coefficient == pytest.approx(SLOPE, rel=0.5)  # sixteen draws of a normal number


def test_the_radius_is_found_where_the_loss_is_no_parabola() -> None:
    optimizer, bowl = made()
    rate = choose_rate(optimizer, [lambda: 1e4 * bowl() ** 3 + bowl() * 1e-3], 100)
    rise = 1e4 * (0.5 * rate.radius**2 * TRACE) ** 3
    assert RISE / 3.0 < rise < RISE * 3.0


def test_noise_that_lowers_the_loss_counts_as_noise_that_raises_it() -> None:
    """A model that is sure of the wrong answers gets better by any noise. The radius must not lie beyond this gain."""
    optimizer, bowl = made()
    rate = choose_rate(optimizer, [lambda: 0.5 * (bowl() - 3.0).square()], 100)
    assert rate.radius == pytest.approx(math.sqrt(2.0 * RISE / 3.0 / TRACE), rel=0.1)


def test_batches_whose_losses_change_in_opposite_ways_do_not_cancel() -> None:
    optimizer, bowl = made()
    rate = choose_rate(optimizer, [bowl, lambda: -bowl()], 100)
    assert rate.radius == pytest.approx(math.sqrt(2.0 * RISE / TRACE), rel=0.1)


def test_the_directions_are_those_of_the_method() -> None:
    """A law with directions of four times the length reaches the same change of the loss with a quarter of them."""

    class Long(Gaussian):
        def draw(self, *args: Any, **options: Any) -> tuple[Tensor, float]:
            z, factor = super().draw(*args, **options)
            return z, 4.0 * factor

    bowl = Bowl()
    rate = choose_rate(ZerothOrder(bowl, lr="auto", perturbation=Long()), [bowl], 100)
    assert rate.radius == pytest.approx(math.sqrt(2.0 * RISE / TRACE) / 4.0, rel=0.1)


def test_only_the_blocks_of_a_step_move() -> None:
    """A step of one block of two is half as noisy, so that it may be longer."""

    class First(AllBlocks):
        selects_all = False

        def select(self, step: Step) -> BlockSample:
            return replace(super().select(step), chosen=torch.tensor([True, False]))

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = nn.ModuleList([Bowl(), Bowl()])

        def forward(self) -> Tensor:
            return torch.stack([bowl() for bowl in self.both]).sum()

    two = Two()
    rates = [choose_rate(ZerothOrder(two, lr="auto", selection=own), [two], 1) for own in (First(), AllBlocks())]
    assert rates[0].radius == pytest.approx(math.sqrt(2.0 * RISE / TRACE), rel=0.05)
    assert rates[1].radius == pytest.approx(math.sqrt(2.0 * RISE / TRACE / 2.0), rel=0.05)


@pytest.mark.parametrize("directions", [8, 32])
def test_the_estimate_of_many_directions_moves_along_the_gradient_where_the_loss_bends_more(directions: int) -> None:
    """With Δᵢ = ⟨g, uᵢ⟩, the unit move Σᵢ Δᵢuᵢ / ‖Δ‖ has ⟨ĝ, u⟩² = Σᵢ ⟨ĝ, uᵢ⟩², which is q on average."""
    optimizer, bowl = made(directions=directions)
    assert isinstance(bowl, Bowl)
    sharp = TRACE / 4.0

    def loss() -> Tensor:
        along = (bowl.g * bowl.theta.double()).sum() / SLOPE
        return bowl() + 0.5 * sharp * along.square()

    rate = choose_rate(optimizer, [loss], 100)
    assert rate.radius == pytest.approx(math.sqrt(2.0 * RISE / (TRACE + directions * sharp)), rel=0.15)


def test_a_batch_on_which_no_probe_changes_the_loss_still_has_a_move() -> None:
    """In 16 bits, probes of the radius ε may leave a loss as it is, where a longer move changes it."""
    optimizer, bowl = made(directions=2)

    def coarse() -> Tensor:
        return (bowl() / 0.02).round() * 0.02

    rate = choose_rate(optimizer, [coarse, bowl], 100)
    assert rate.radius == pytest.approx(math.sqrt(2.0 * RISE / TRACE), rel=0.15)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_in_a_long_run_the_noise_of_all_steps_raises_the_loss_by_the_given_amount(scale: float) -> None:
    optimizer, bowl = made(Bowl(scale))
    steps = 10**9
    rate = choose_rate(optimizer, [bowl], steps)
    noise = 0.5 * rate.lr**2 * rate.coefficient**2 * steps * TRACE * scale
    assert noise == pytest.approx(NOISE, rel=0.1)


@pytest.mark.parametrize("directions", [1, 8])
def test_in_a_short_run_a_step_is_a_share_of_the_longest_that_pays(directions: int) -> None:
    """E[L] falls by η·q·g and rises by η²·tr(H)·g/2 for a mean over q directions, so that it falls below 2q / tr(H)."""
    optimizer, bowl = made(directions=directions)
    rate = choose_rate(optimizer, [bowl], 1)
    assert rate.lr == pytest.approx(SHARE * directions / TRACE, rel=0.1)


def chosen(**options: Any) -> Rate:
    optimizer, bowl = made(**options)
    return choose_rate(optimizer, [bowl], 100)


def test_momentum_lowers_the_rate_by_what_it_adds() -> None:
    rates = [chosen(momentum=momentum).lr for momentum in (0.0, 0.9)]
    assert rates[1] == pytest.approx(0.1 * rates[0])


def test_batches_are_measured_in_turn() -> None:
    """A first batch with small gradients says little about a run."""
    optimizer, bowl = made()
    rate = choose_rate(optimizer, [lambda: 1e-3 * bowl(), bowl], 10_000)
    assert rate.coefficient == pytest.approx(SLOPE / math.sqrt(2.0), rel=0.5)


METHODS: dict[str, Callable[..., ZerothOrder]] = {
    "mezo": zolit.MeZO,
    "curvzo": zolit.CurvZO,
    "fzoo, code": lambda model, **own: zolit.FZOO(model, variant="code", **own),
    "bszo": zolit.BSZO,
    "hizoo": zolit.HiZOO,
    "lozo": zolit.LOZO,
    "greedy": zolit.MeZOGreedy,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_the_run_after_a_choice_is_the_run_with_that_number(name: str, dtype: torch.dtype) -> None:
    """No weight moves, and no stage learns, while a rate is chosen."""
    first, second = (copy.deepcopy(Bowl().to(dtype)) for _ in range(2))
    searching = METHODS[name](first)
    rate = choose_rate(searching, [first], 500)
    assert torch.equal(first.theta, second.theta)
    given = METHODS[name](second, lr=rate.lr)
    for _ in range(3):
        assert searching.step(first) == given.step(second)
    assert torch.equal(first.theta, second.theta)
    assert first.theta.any()
    assert searching.last_step is not None
    assert given.last_step is not None
    assert searching.last_step.total_forward_passes == given.last_step.total_forward_passes + rate.forwards
    assert rate.forwards >= 16


def test_a_choice_is_needed_made_once_and_saved() -> None:
    optimizer, bowl = made()
    with pytest.raises(UserError, match=r"lr: auto needs zolit.choose_rate before the first step"):
        optimizer.step(bowl)
    rate = zolit.choose_rate(optimizer, [bowl], 100)
    assert optimizer.param_groups[0]["lr"] == rate.lr
    resumed, _ = made(copy.deepcopy(bowl))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.param_groups[0]["lr"] == rate.lr
    resumed.step(resumed.model)
    assert "lr: auto chose" in str(rate)
    assert "\n" not in str(rate)


def broken(value: float) -> Callable[[], Tensor]:
    return lambda: torch.tensor(value)


@pytest.mark.parametrize(
    ("options", "closure", "message"),
    [
        ({"lr": "fast"}, None, "lr: the learning rate must be a number or auto, not 'fast'"),
        ({"lr": -1.0}, None, "lr: the learning rate must be at least 0 and finite, not -1.0"),
        ({}, broken(math.nan), "lr: auto found a loss that is not finite; check the data and eps"),
        ({}, broken(1.0), "lr: auto found no difference between the losses of any two probes"),
    ],
)
def test_mistakes(options: dict[str, Any], closure: Callable[[], Tensor] | None, message: str) -> None:
    def run() -> None:
        optimizer, bowl = made(**options)
        choose_rate(optimizer, [closure or bowl], 10)

    with pytest.raises(UserError, match=message):
        run()


def test_a_loss_that_never_rises_and_a_method_with_adam_are_refused() -> None:
    optimizer, bowl = made()
    with pytest.raises(UserError, match=r"lr: auto found no move of the weights that changes the loss by 0.1"):
        choose_rate(optimizer, [lambda: bowl().tanh() * 1e-3], 10)
    with pytest.raises(UserError, match="lr: auto is for methods that move weights by SGD"):
        choose_rate(ZerothOrder(Bowl(), lr="auto", update=Adam()), [bowl], 10)
    with_sgd = ZerothOrder(bowl, lr="auto", update=SGD(), estimator=SPSA())
    assert choose_rate(with_sgd, [bowl], 10).lr > 0.0
