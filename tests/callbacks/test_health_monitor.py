"""Made reports, weights and metrics: when a sentence comes, and what the run's verdict is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from zolit_callbacks import HealthMonitor

from tests.helpers.reporting import make_selection
from zolit.optim.report import StepReport

CHANCE = {"val/accuracy": 0.5, "val/loss": 0.9}
LEARNED = {"val/accuracy": 0.8, "val/loss": 0.6}


class Run:
    """Calls a monitor's hooks in the order of a fit, and collects what it says."""

    def __init__(self, monitor: HealthMonitor | None = None, *, value: float = 0.1, frozen: float = 0.0) -> None:
        self.monitor = monitor or HealthMonitor()
        self.module: Any = torch.nn.ParameterDict({"own": torch.full((5210,), value)})
        self.module["frozen"] = torch.nn.Parameter(torch.full((5210,), frozen), requires_grad=False)
        self.trainer: Any = SimpleNamespace(
            strategy=SimpleNamespace(reduce=lambda tensor, reduce_op: tensor),
            callback_metrics={},
            sanity_checking=False,
            state=SimpleNamespace(fn="fit"),
            global_step=0,
            max_steps=1000,
            datamodule=SimpleNamespace(task=SimpleNamespace(metrics=("accuracy",))),
            checkpoint_callback=SimpleNamespace(best_model_path="runs/best.ckpt"),
        )
        self.said: list[str] = []
        self.skips = 0

    def start(self, before: dict[str, float] | None = CHANCE) -> Run:
        if before is not None:
            self.trainer.sanity_checking = True
            self.validate(before)
            self.trainer.sanity_checking = False
        self.monitor.on_train_start(self.trainer, self.module)
        return self

    def step(
        self,
        *,
        move: float = 0.0,
        coefficient: float = 1.0,
        losses: tuple[float, ...] = (0.9, 0.8),
        skipped: bool = False,
        backwards: int = 0,
        perturbed: int = 5210,
    ) -> Run:
        """Moves the first ``perturbed`` weights by ``move`` up or down, and reports a step with the rate 1e-3."""
        signs = torch.ones(perturbed)
        signs[::2] = -1
        self.module["own"].data[:perturbed] += move * signs
        self.skips += skipped
        report = StepReport(
            step=self.trainer.global_step,
            loss=losses[0],
            losses=losses,
            coefficients=(0.6 * coefficient, 0.8 * coefficient),
            forward_passes=2,
            total_forward_passes=2,
            skipped=skipped,
            skipped_steps=self.skips,
            learning_rate=1e-3,
            selection=replace(make_selection(None), perturbed_parameters=perturbed),
            total_backward_passes=backwards,
        )
        self.trainer.global_step += 1
        with listening(self.said):
            self.monitor.on_train_batch_end(self.trainer, self.module, {"zo": report}, None, 0)  # type: ignore[dict-item]  # a STEP_OUTPUT
        return self

    def validate(self, metrics: dict[str, float]) -> Run:
        self.trainer.callback_metrics = metrics
        with listening(self.said):
            self.monitor.on_validation_end(self.trainer, self.module)
        return self

    def end(self, metrics: dict[str, float] | None = CHANCE) -> str | None:
        self.monitor.on_train_end(self.trainer, self.module)
        self.trainer.state.fn = "validate"
        if metrics is not None:
            self.validate(metrics)
        return self.monitor.verdict(self.trainer)

    def resumed(self) -> Run:
        monitor = HealthMonitor()
        monitor.load_state_dict(self.monitor.state_dict())
        run = Run(monitor)
        run.module, run.trainer.global_step = self.module, self.trainer.global_step
        return run.start(None)


@contextmanager
def listening(said: list[str]) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    said += [str(warning.message) for warning in caught]


def test_a_step_larger_than_the_weights_is_said_once_with_its_numbers() -> None:
    run = Run().start()
    for _ in range(3):
        run.step(move=0.5, coefficient=500.0)
    (said,) = run.said
    assert "step 0 moved each weight by about 0.5" in said
    assert "a size of 0.1" in said
    assert "lower model.optimizer.lr" in said


def test_a_step_smaller_than_the_weights_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run().start()
    monkeypatch.setattr("zolit_callbacks.health._size_of", lambda *_: pytest.fail("a pass over the weights"))
    assert not run.step(move=0.09, coefficient=90.0).said


def test_an_update_that_moves_by_less_than_its_coefficients_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Adam, which moves by the learning rate. The weights are measured again only at twice the step."""
    run = Run().start()
    passes = []
    size_of = torch.linalg.vector_norm
    monkeypatch.setattr("torch.linalg.vector_norm", lambda *a, **k: passes.append(1) or size_of(*a, **k))
    for coefficient in [500.0] * 20 + [1001.0] * 20:
        run.step(move=1e-3, coefficient=coefficient)
    assert not run.said
    assert len(passes) == 2


@pytest.mark.parametrize(("reported", "said"), [(52, True), (5210, False)])
def test_a_sparse_step_is_compared_with_the_weights_it_perturbs(reported: int, said: bool) -> None:
    run = Run().start()
    run.module["own"].data[:52] += 0.2
    assert bool(run.step(coefficient=200.0, perturbed=reported).said) == said


def test_weights_that_start_at_zero_are_compared_with_the_whole_model() -> None:
    run = Run(value=0.0, frozen=0.2).start()
    assert not run.step(move=0.01, coefficient=10.0).said
    run.step(move=0.3, coefficient=300.0)
    assert "a size of 0.14" in run.said[0]


def test_a_model_of_zeros_or_nan_says_nothing_about_sizes() -> None:
    for value in (0.0, math.nan):
        run = Run(value=value).start()
        run.step(coefficient=1e-9)
        assert run.end() is None


@pytest.mark.parametrize(
    ("growth", "after", "diverged"),
    [
        (1.9, CHANCE, False),
        (2.1, CHANCE, True),
        (2.1, {"val/accuracy": 0.5, "val/loss": 0.7}, True),  # chance may be better than a loss before training
        (2.1, {"val/accuracy": 0.54, "val/loss": 5.0}, True),
        (2.1, {"val/accuracy": 0.56, "val/loss": 5.0}, False),  # overconfident, but more often right
        (2.1, {"val/accuracy": 0.5, "val/loss": 0.4}, False),
        (1e8, LEARNED, False),
        (math.inf, CHANCE, True),
        (math.nan, {"val/accuracy": 0.5, "val/loss": math.nan}, True),
    ],
)
def test_weights_that_grow_without_learning(growth: float, after: dict[str, float], diverged: bool) -> None:
    run = Run().start().step()
    run.module["own"].data *= growth
    run.validate(after).step().validate(after)
    sentences = [said for said in run.said if "diverged" in said]
    assert len(sentences) == diverged
    verdict = run.end(after)
    assert (verdict is not None) == diverged
    if verdict is not None:
        assert "model.optimizer.lr" in verdict
        assert "runs/best.ckpt has the weights of the best validation" in verdict


@pytest.mark.parametrize(("last", "growth", "diverged"), [(0.8, 11, True), (0.8, 9, False), (0.4, 11, False)])
def test_without_validations_the_training_losses_count(last: float, growth: float, diverged: bool) -> None:
    run = Run().start(None).step(losses=(math.nan,), coefficient=0.0, skipped=True)
    for loss in [0.9, *[50.0] * 20, *[last] * 20]:
        run.step(losses=(loss, loss + 0.1))
    run.module["own"].data *= growth
    verdict = run.end(None)
    assert (verdict is not None) == diverged
    if verdict is not None:
        assert f"train/loss went from 0.9 to {last}" in verdict


def test_probes_that_do_not_differ() -> None:
    run = Run().start()
    for _ in range(9):
        run.step(losses=(0.9, 0.9), coefficient=0.0)
    assert not run.said
    assert run.end() is None
    for _ in range(9):
        run.step(losses=(0.9, 0.9), coefficient=0.0)
    (said,) = run.said
    assert "10 steps in a row" in said
    assert "model.optimizer.eps" in said
    verdict = run.end()
    assert verdict is not None
    assert "18 steps in a row" in verdict


@pytest.mark.parametrize(
    "step",
    [
        {"losses": (0.9,), "coefficient": 0.0},  # nothing is probed
        {"losses": (0.9, 0.9), "coefficient": 0.0, "backwards": 100},
        {"losses": (0.9, 0.9), "coefficient": 1.0},  # mean losses are equal, those of examples are not
        {"losses": (0.9, 0.8), "coefficient": 0.0},
    ],
)
def test_steps_that_move_weights_are_not_alike(step: dict[str, Any]) -> None:
    run = Run().start()
    for _ in range(12):
        run.step(**step)
    assert not run.said
    assert run.end() is None


def test_a_step_that_moves_weights_ends_the_row_and_a_skipped_one_does_not() -> None:
    run = Run().start()
    for _ in range(9):
        run.step(losses=(0.9, 0.9), coefficient=0.0)
    run.step()
    for _ in range(9):
        run.step(losses=(0.9, 0.9), coefficient=0.0)
    assert not run.said
    run.step(losses=(math.nan,), coefficient=0.0, skipped=True).step(losses=(0.9, 0.9), coefficient=0.0)
    assert len(run.said) == 1


def test_after_too_large_a_rate_equal_probes_are_no_trouble_of_their_own() -> None:
    run = Run().start().step(move=0.5, coefficient=500.0)
    for _ in range(12):
        run.step(losses=(0.7, 0.7), coefficient=0.0)
    assert len(run.said) == 1


def test_a_run_that_moved_once_has_no_verdict() -> None:
    run = Run().start().step()
    for _ in range(12):
        run.step(losses=(0.9, 0.9), coefficient=0.0)
    assert len(run.said) == 1
    assert run.end() is None


def test_skipped_and_alike_steps_together_learn_nothing() -> None:
    run = Run().start()
    for _ in range(3):
        run.step(losses=(math.nan,), coefficient=0.0, skipped=True)
    for _ in range(10):
        run.step(losses=(0.9, 0.9), coefficient=0.0)
    assert run.end() is not None


def test_all_steps_skipped() -> None:
    run = Run().start()
    for _ in range(3):
        run.step(losses=(math.nan,), coefficient=0.0, skipped=True)
    run.validate(CHANCE).validate(CHANCE)
    (said,) = run.said
    assert "all 3 steps were skipped" in said
    verdict = run.end()
    assert verdict is not None
    assert "all 3 steps were skipped" in verdict
    assert run.step().end() is None


def test_at_the_last_step_only_the_verdict_speaks() -> None:
    run = Run().start()
    run.trainer.max_steps = 1
    run.step(losses=(math.nan,), coefficient=0.0, skipped=True).validate(CHANCE)
    assert not run.said
    assert run.end(None) is not None


@pytest.mark.parametrize("name", ["val/loss", "val/accuracy"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_metrics_that_are_not_finite(name: str, value: float) -> None:
    run = Run().start().step().validate({**LEARNED, name: value}).step().validate({**LEARNED, name: value})
    (said,) = run.said
    assert f"{name} is {value} in the validation after step 1" in said


def test_a_fit_without_a_step_has_no_verdict() -> None:
    assert Run().start().end() is None


def test_a_resumed_run_keeps_the_start_and_says_nothing_twice() -> None:
    run = Run().start()
    for _ in range(10):
        run.step(losses=(0.9, 0.9), coefficient=0.0)
    run.step(move=0.5, coefficient=500.0).validate({"val/accuracy": math.nan, "val/loss": 1.0})
    assert len(run.said) == 4
    assert "diverged" in str(run.resumed().end())  # also if no step is left
    resumed = run.resumed()
    for _ in range(10):
        resumed.step(losses=(0.9, 0.9), coefficient=0.0)
    resumed.step(move=5.0, coefficient=5000.0).validate({"val/accuracy": math.nan, "val/loss": 1.0})
    assert not resumed.said
    verdict = resumed.end()
    assert verdict is not None
    assert "diverged" in verdict
    assert "from 0.5 to 0.5 and val/loss went from 0.9" in verdict


def test_checkpoints_keep_the_whole_state() -> None:
    run = Run().start().step(coefficient=150.0)
    for _ in range(6):
        run.step(move=0.001, losses=(0.6, 0.6), coefficient=0.0)
    resumed = run.resumed()
    kept = (vars(r.monitor) for r in (run, resumed))
    assert next(kept) == next(kept)
    resumed.trainer.sanity_checking = True
    resumed.validate(LEARNED)
    assert resumed.monitor.state_dict()["before"] == CHANCE
    resumed.trainer.sanity_checking = False
    for _ in range(4):
        resumed.step(losses=(0.6, 0.6), coefficient=0.0)
    assert len(run.said + resumed.said) == 1


def test_a_short_resume_of_a_healthy_run_has_no_verdict() -> None:
    run = Run().start()
    for _ in range(30):
        run.step()
    resumed = run.resumed().step(losses=(0.9, 0.9), coefficient=0.0)
    assert resumed.end() is None
    assert not resumed.said
