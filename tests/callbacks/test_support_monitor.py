from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
from zolit_callbacks import SupportMonitor

from tests.helpers.reporting import Runs

FLAT = (1.0, 1.0, 1.0, 1.0)
NEARLY_FLAT = (1.0, 1.0, 1.0, 0.4)  # share .97
UNEVEN = (9.0, 4.0, 1.0, 1.0)  # share .82
COLLAPSED = (1.0, 1e-8, 1e-8, 1e-8)  # entropy .003; a share of four units cannot fall below .25
LOW = (1.0, 5e-5, 5e-5, 5e-5)  # entropy .1


def monitor(**options: Any) -> SupportMonitor:
    return SupportMonitor(**({"every_n_steps": 1, "patience": 0} | options))


def warnings_in(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    return [text for warning in caught if "curvature distribution" in (text := str(warning.message))]


def test_scalars(runs: Runs) -> None:
    runs.fit(SupportMonitor(every_n_steps=4), runs.module(lambda step: UNEVEN), steps=10)
    assert runs.scalars("support/effective") == pytest.approx({3: 49 / 15, 7: 49 / 15})
    assert runs.scalars("support/effective_share") == pytest.approx({3: 49 / 60, 7: 49 / 60})
    assert runs.scalars("support/entropy") == pytest.approx({3: 0.921186, 7: 0.921186})


def test_without_scores_nothing_is_logged(runs: Runs) -> None:
    runs.fit(monitor(), runs.module(lambda step: None), steps=3)
    assert runs.boards().Tags()["scalars"] == ["train/loss", "epoch"]


@pytest.mark.parametrize(
    ("scores", "said"), [(COLLAPSED, "has collapsed: at step 3 .* of 4"), (FLAT, "is flat: at step 3")]
)
def test_a_change_of_state_warns_once(runs: Runs, scores: Sequence[float], said: str) -> None:
    module = runs.module(lambda step: scores if step >= 3 else UNEVEN)
    with pytest.warns(UserWarning, match=said) as caught:
        runs.fit(monitor(), module, steps=10, logger=False)
    assert len(warnings_in(caught)) == 1


def test_a_state_that_was_left_warns_again(runs: Runs) -> None:
    module = runs.module(lambda step: UNEVEN if step == 5 else FLAT)
    with pytest.warns(UserWarning, match="is flat") as caught:
        runs.fit(monitor(), module, steps=10, logger=False)
    assert [message.partition(" the effective")[0][-6:] for message in warnings_in(caught)] == ["step 0", "step 6"]


@pytest.mark.parametrize(
    ("scores", "near", "options"),
    [(FLAT, NEARLY_FLAT, {}), (COLLAPSED, LOW, {"collapsed_below": 0.08})],
)
def test_hovering_at_the_threshold_does_not_warn_again(
    runs: Runs, scores: Sequence[float], near: Sequence[float], options: dict[str, Any]
) -> None:
    module = runs.module(lambda step: near if step % 2 else scores)
    with pytest.warns(UserWarning, match="curvature distribution") as caught:
        runs.fit(monitor(**options), module, steps=10, logger=False)
    assert len(warnings_in(caught)) == 1


def test_patience(runs: Runs) -> None:
    with warnings.catch_warnings(record=True) as caught:
        runs.fit(monitor(patience=5), runs.module(lambda step: FLAT), steps=5, logger=False)
    assert not warnings_in(caught)
    with pytest.warns(UserWarning, match="at step 5"):
        runs.fit(monitor(patience=5), runs.module(lambda step: FLAT), steps=10, logger=False)


def test_a_resumed_run_does_not_warn_again(runs: Runs) -> None:
    with pytest.warns(UserWarning, match="has collapsed") as caught:
        runs.resume(monitor, runs.module(lambda step: COLLAPSED), stop=10, steps=20, logger=False)
    assert len(warnings_in(caught)) == 1
