from __future__ import annotations

from typing import Any

import pytest
import torch

from zolit import UserError
from zolit.optim.selection.curvature.scores import BlockScores, ScoreRule

SIZES = torch.tensor([2, 4, 1])
PI = torch.tensor([0.5, 0.8, 0.25], dtype=torch.float64)
CHOSEN = torch.tensor([True, True, False])
SQUARED_NORMS = torch.tensor([[1.0, 3.0, 0.0]], dtype=torch.float64)


def bound(**options: Any) -> BlockScores:
    scores = BlockScores(**options)
    scores.bind(SIZES)
    return scores


def test_first_step_begins_flat_and_then_moves() -> None:
    """Δ² = 4: s = (1, 3, 0), so all averages begin at (1 + 3) / 2 = 2."""
    scores = bound(smoothing=0.25)
    scores.observe([2.0], SQUARED_NORMS, CHOSEN, PI)
    assert scores.values.tolist() == pytest.approx([0.75 * 2 + 0.25 * 1, 0.75 * 2 + 0.25 * 3, 2.0])


@pytest.mark.parametrize(
    ("rule", "second"),
    [("sampled", [1.75, 2.25, 2.0]), ("literal", [1.75, 2.25, 1.5]), ("corrected", [2.0, 2.4375, 1.5])],
)
def test_rules_differ_where_they_should(rule: ScoreRule, second: list[float]) -> None:
    scores = bound(smoothing=0.25, rule=rule)
    scores.observe([2.0], SQUARED_NORMS, CHOSEN, PI)
    assert scores.values.tolist() == pytest.approx(second)


def test_unbiased_begins_at_zero_and_shows_no_negative_score() -> None:
    scores = bound(smoothing=0.5, rule="unbiased")
    scores.observe([2.0], SQUARED_NORMS, CHOSEN, PI)
    expected = [
        0.5 * 4.0 * (e - pi * d) / (pi * (2.0 + d * (1.0 - pi)))
        for e, pi, d in zip(SQUARED_NORMS[0].tolist(), PI.tolist(), SIZES.tolist(), strict=True)
    ]
    assert scores.values.tolist() == pytest.approx(expected)
    assert min(expected) < 0.0
    assert scores.usable.tolist() == pytest.approx([max(value, 0.0) for value in expected])


def test_directions_are_averaged() -> None:
    both = bound(smoothing=1.0)
    both.observe(
        [2.0, -1.0],
        torch.cat([SQUARED_NORMS, SQUARED_NORMS.flip(1) + SQUARED_NORMS]),
        torch.ones(3, dtype=torch.bool),
        PI,
    )
    first = 4.0 * SQUARED_NORMS[0] / 4.0
    second = 1.0 * (SQUARED_NORMS.flip(1) + SQUARED_NORMS)[0] / 8.0
    assert torch.allclose(both.values, (first + second) / 2)


def test_division_by_size() -> None:
    scores = bound(smoothing=1.0, divide_by_size=True)
    scores.observe([2.0], SQUARED_NORMS, CHOSEN, PI)
    assert scores.values.tolist() == pytest.approx([1.0 / 2, 3.0 / 4, (1.0 / 2 + 3.0 / 4) / 2])


def test_a_flat_loss_at_first_does_not_begin_the_average_at_zero() -> None:
    """A first step with equal losses does not tell the scale of later scores: all blocks must stay equal."""
    scores = bound(smoothing=0.25)
    scores.observe([0.0], SQUARED_NORMS, CHOSEN, PI)
    scores.observe([2.0], SQUARED_NORMS, CHOSEN, PI)
    assert scores.values.tolist() == pytest.approx([1.75, 2.25, 2.0])


@pytest.mark.parametrize("smoothing", [0.0, -0.1, 1.5])
def test_smoothing_out_of_range(smoothing: float) -> None:
    with pytest.raises(UserError, match="smoothing"):
        BlockScores(smoothing)


def test_a_saved_state_does_not_change_with_the_scores() -> None:
    scores = bound()
    saved = scores.state_dict()
    scores.observe([2.0], SQUARED_NORMS, CHOSEN, PI)
    assert torch.equal(saved["values"], torch.zeros(3, dtype=torch.float64))
