"""Made reports: when a sentence about steps comes, and what the run's verdict is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.helpers.health import CHANCE, Run


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
