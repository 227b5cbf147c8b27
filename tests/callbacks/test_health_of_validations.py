"""Made metrics: when a sentence about validations comes, and what the run's verdict is; resumed runs."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from tests.conftest import Fit
from tests.helpers.health import CHANCE, LEARNED, Run


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


@pytest.mark.parametrize(("backwards", "diverged"), [(0, False), (1, True)])
def test_weights_that_are_fitted_and_not_moved_by_steps_may_grow(backwards: int, diverged: bool) -> None:
    """A linear probe has neither coefficients nor backward passes; AdamW has the latter."""
    run = Run().start().step(coefficient=None, backwards=backwards, losses=(0.9,))
    run.module["own"].data *= 10.0
    assert (run.end(CHANCE) is not None) == diverged


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


def hundred(run: Run) -> Run:
    for _ in range(100):
        run.step()
    return run


STOOD = {"val/accuracy": 0.5, "val/loss": 0.9005}


def test_metrics_that_have_not_moved() -> None:
    run = Run().start().step().validate(STOOD)
    assert not run.said
    hundred(run).validate(STOOD).validate(STOOD)
    (said,) = run.said
    assert said.startswith("val/accuracy (0.5) and val/loss (0.9) did not move in 101 steps: raise model.optimizer.lr")
    assert not hundred(run.resumed()).validate(STOOD).said


@pytest.mark.parametrize("once", [{"val/accuracy": 0.51, "val/loss": 0.9}, {"val/accuracy": 0.5, "val/loss": 0.91}])
def test_metrics_that_moved_once(once: dict[str, float]) -> None:
    run = hundred(Run().start().step().validate(once).resumed()).validate(CHANCE)
    assert not run.said


def test_metrics_that_another_trouble_explains() -> None:
    run = Run().start()
    for _ in range(100):
        run.step(losses=(0.9, 0.9), coefficient=0.0)
    run.validate(CHANCE)
    assert len(run.said) == 1


def test_without_a_validation_at_the_start_nothing_has_stood_still() -> None:
    assert not hundred(Run().start(None)).validate(CHANCE).said


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the optimizer, about the probes
@pytest.mark.filterwarnings("ignore:step. eps. .* is rounded away")  # this is what is tested
@pytest.mark.parametrize(
    ("option", "steps", "sentence"),
    [("lr=1e-9", 101, "did not move in .* raise model.optimizer.lr"), ("eps=1e-12", 11, "raise model.optimizer.eps")],
)
def test_on_a_real_run(zolit: Fit, option: str, steps: int, sentence: str) -> None:
    length = (f"--trainer.max_steps={steps + 1}", f"--trainer.val_check_interval={steps}")
    with pytest.warns(UserWarning, match=sentence):
        zolit("fit", f"--model.optimizer.{option}", *length)


def texts() -> Run:
    """Returns a run whose score is a perplexity, which is better when it is smaller."""
    run = Run()
    run.trainer.datamodule.task = SimpleNamespace(metrics=("perplexity",), lower_is_better=True)
    return run.start({"val/perplexity": 20.0, "val/loss": 2.996})


@pytest.mark.parametrize(("perplexity", "diverged"), [(20.0, True), (300.0, True), (19.5, True), (18.9, False)])
def test_a_perplexity_gains_when_it_falls(perplexity: float, diverged: bool) -> None:
    run, after = texts().step(), {"val/perplexity": perplexity, "val/loss": math.log(perplexity)}
    run.module["own"].data *= 2.1
    run.validate(after)
    verdict = run.end(after)
    assert (verdict is not None) == diverged
    if verdict is not None:
        assert f"val/perplexity went from 20 to {perplexity:.3g} and val/loss went from 3 to" in verdict


@pytest.mark.parametrize(("perplexity", "still"), [(20.01, True), (19.99, True), (20.5, False), (19.8, False)])
def test_a_perplexity_that_moves_by_a_rounding_has_not_moved(perplexity: float, still: bool) -> None:
    after = {"val/perplexity": perplexity, "val/loss": math.log(perplexity)}
    said = hundred(texts().step().validate(after)).validate(after).said
    assert len(said) == still
    assert not still or said[0].startswith(f"val/perplexity ({perplexity:.3g}) and val/loss (3) did not move in 101 ")
