"""Losses that an estimator asks for: which of them cost a forward, and which are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.directions import directions_of
from tests.helpers.tiny import layered, regression
from zolit import BSZO, MeZO, PerExample, ZerothOrder
from zolit.optim.base_point import BasePoint, Closure, NotFinite
from zolit.optim.collectives import Collectives
from zolit.optim.estimators.one_sided import OneSided
from zolit.optim.evaluation import Evaluation
from zolit.optim.perturbation.directions import Directions
from zolit.optim.probing.in_place import InPlace
from zolit.optim.randomness import Step
from zolit.optim.updates.sgd import SGD

EPS = 1e-2


class Counting(InPlace):
    """Records the number of queries of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def losses(self, closure: Closure, directions: Directions, queries: Tensor, repeats_batch: bool = False) -> Tensor:
        self.calls.append(len(queries))
        return super().losses(closure, directions, queries, repeats_batch)


def evaluation(scale: float = 1.0) -> tuple[Evaluation, BasePoint, Counting]:
    """Returns an evaluation along two directions of the layered model, in float64."""
    model, prober = layered(torch.float64), Counting()
    closure = regression(model)
    base = BasePoint(model, lambda: scale * closure(), Collectives(), Step(0, 0), 0.0)
    directions = directions_of(MeZO(model, lr=1e-6, directions=2), 0, range(2))
    return Evaluation(base, prober, directions, per_example=False, repeats_batch=False), base, prober


def queries(*rows: tuple[float, float]) -> Tensor:
    return EPS * torch.tensor(rows, dtype=torch.float64)


@torch.no_grad()
def test_rows_of_zeros_cost_one_forward_a_step() -> None:
    evaluate, base, prober = evaluation()
    expected = float(base.closure().mean())
    first = evaluate(queries((1, 0), (0, 0)))
    assert float(first[1]) == pytest.approx(expected, rel=1e-12)
    again = evaluate(queries((0, 0), (0, 1), (0, 0)))
    assert again[0] == again[2] == first[1]
    assert again[1] != again[0]
    assert evaluate(queries((0, 0))).tolist() == [float(first[1])]
    assert prober.calls == [2, 1]
    assert len(base.losses) == 3


@torch.no_grad()
def test_the_loss_that_a_stage_measured_is_reused() -> None:
    evaluate, base, prober = evaluation()
    measured = base.loss()
    losses = evaluate(queries((0, 0), (1, -1), (0, 0)))
    assert losses[0] == losses[2] == measured
    assert float(losses[1]) == pytest.approx(float(evaluate(queries((1, -1)))[0]), rel=1e-12)
    assert prober.calls == [1, 1]
    assert base.losses == [measured, float(losses[1]), float(losses[1])]


@torch.no_grad()
def test_losses_that_are_not_finite_are_counted_and_refused() -> None:
    evaluate, base, _ = evaluation(scale=float("inf"))
    with pytest.raises(NotFinite):
        evaluate(queries((1, 0), (0, 0)))
    assert len(base.losses) == 2


@pytest.mark.parametrize(("adaptive", "forwards"), [(False, 3), (True, 6)])
def test_bszo_b_costs_one_forward_more_than_its_measurements(adaptive: bool, forwards: int) -> None:
    """With k = 2 and m = 5: k + 1 forwards, and m + 1 where adaptive. L(θ) costs one forward in each step."""
    model = layered()
    optimizer, closure, calls = BSZO(model, lr=1e-6, directions=2, queries=5, adaptive=adaptive), regression(model), 0

    def counted() -> Tensor:
        nonlocal calls
        calls += 1
        return closure()

    for step in range(3):
        optimizer.step(counted)
        assert optimizer.last_step.forward_passes == forwards
        assert optimizer.last_step.total_forward_passes == calls == forwards * (step + 1)


class Shift(SGD):
    """Measures L(θ) and then moves θ, before the step's probes."""

    def prepare(self, base: BasePoint) -> None:
        base.loss()
        for parameter in base.model.parameters():
            parameter.add_(0.1)


def test_a_loss_from_before_the_update_moved_theta_is_not_reused() -> None:
    model = layered(torch.float64)
    optimizer, closure = ZerothOrder(model, lr=0.0, estimator=OneSided(), update=Shift()), regression(model)
    optimizer.step(closure)
    before, center, _ = optimizer.last_step.losses
    with torch.no_grad():
        assert center == pytest.approx(float(closure().mean()), rel=1e-12)
    assert before != center


@torch.no_grad()
def test_per_example_losses_are_those_of_all_ranks_and_count_as_their_mean() -> None:
    class Doubled(Collectives):
        """Two ranks with the same examples."""

        def all_gather(self, own: Tensor) -> Tensor:
            return torch.cat([own, own], dim=-1)

    model = layered(torch.float64)
    optimizer = PerExample(model, lr=4e-5)
    base = BasePoint(model, regression(model, examples=3), Doubled(), Step(0, 0), 0.0)
    evaluate = Evaluation(base, optimizer.prober, directions_of(optimizer, 0), per_example=True, repeats_batch=False)
    losses = evaluate(queries((1, 0), (-1, 0))[:, :1])
    assert losses.shape == (2, 6)
    assert torch.equal(losses[:, :3], losses[:, 3:])
    assert base.losses == losses.mean(1).tolist()
