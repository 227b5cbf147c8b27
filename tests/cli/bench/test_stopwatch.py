"""The parts of a step's time, with a clock that the tests set."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.tiny import layered, regression
from zolit import MeZO
from zolit.cli.bench.measure import timed_functions
from zolit.cli.bench.stopwatch import Stopwatch, TimedFunction
from zolit.optim.perturbation.gaussian import Gaussian
from zolit.optim.probing import arithmetic

CPU = torch.device("cpu")


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("zolit.cli.bench.stopwatch.clock", lambda device: clock.now)
    return clock


class Worker:
    """A class whose work includes its noise."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def noise(self) -> str:
        self.clock.now += 20.0
        return "noise"

    def work(self) -> str:
        self.clock.now += 5.0
        noise = self.noise()
        self.clock.now += 2.0
        return noise


def test_an_inner_part_is_not_counted_in_the_outer_one(clock: Clock) -> None:
    worker, watch = Worker(clock), Stopwatch(CPU)
    with watch.timing([TimedFunction(worker, "noise", "noise"), TimedFunction(Worker, "work", "work")]):
        assert worker.work() == "noise"
        clock.now += 100.0
        worker.noise()
    assert watch.seconds == {"noise": 40.0, "work": 7.0}
    assert vars(worker).keys() == {"clock"}
    worker.work()
    assert watch.seconds == {"noise": 40.0, "work": 7.0}


class Slow(Gaussian):
    """A law whose draw takes one second."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def draw(self, *args: Any) -> tuple[torch.Tensor, float]:
        self.clock.now += 1.0
        return super().draw(*args)


def test_draws_count_as_noise_and_the_rest_as_arithmetic(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(*args: Any, real: Any = arithmetic.perturb) -> None:
        clock.now += 1000.0
        real(*args)

    monkeypatch.setattr(arithmetic, "perturb", slowly)
    model, watch = layered(), Stopwatch(CPU)
    optimizer = MeZO(model, lr=1e-7, perturbation=Slow(clock))
    with watch.timing(timed_functions(optimizer)):
        optimizer.step(regression(model))
    tensors = len(list(model.parameters()))
    draws, perturbed = watch.seconds["noise"], watch.seconds["arithmetic"] / 1000.0
    assert perturbed >= 2 * tensors
    assert draws == perturbed + tensors
    assert draws + 1000.0 * perturbed == clock.now


def test_functions_are_restored_if_a_step_fails(clock: Clock) -> None:
    worker, watch = Worker(clock), Stopwatch(CPU)
    original = Worker.work

    def fail() -> None:
        with watch.timing([TimedFunction(worker, "noise", "noise"), TimedFunction(Worker, "work", "work")]):
            assert Worker.work is not original
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert Worker.work is original
    assert vars(worker).keys() == {"clock"}
