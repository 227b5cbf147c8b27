from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zolit_callbacks
from jsonargparse import ArgumentParser
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from zolit_callbacks import CurvatureTracker, curvature

from tests.helpers.reporting import Runs


def steady(step: int) -> Sequence[float]:
    return (4e-3, 1e-3, 2e-3, 0.0)


def test_scalars_of_the_leaders_have_the_modules_steps(runs: Runs) -> None:
    runs.fit(CurvatureTracker(every_n_steps=4, top=2), runs.module(steady), steps=10)
    tags = [tag for tag in runs.boards().Tags()["scalars"] if tag.startswith("curvature/")]
    assert sorted(tags) == [
        "curvature/probability/embed.weight",
        "curvature/probability/layers.0.down.weight",
        "curvature/score/embed.weight",
        "curvature/score/layers.0.down.weight",
    ]
    assert runs.scalars("curvature/score/embed.weight") == pytest.approx({3: 4e-3, 7: 4e-3})
    assert runs.scalars("curvature/probability/layers.0.down.weight") == pytest.approx({3: 0.25, 7: 0.25})
    assert {step: runs.scalars("train/loss")[step] for step in (3, 7)} == {3: 3.0, 7: 7.0}


def test_a_block_keeps_its_series(runs: Runs) -> None:
    runs.fit(CurvatureTracker(1, top=1), runs.module(lambda step: (2.0, 1.0, 3.0 if step else 0.0, 0.0)), steps=3)
    assert runs.scalars("curvature/score/embed.weight") == {0: 2.0, 1: 2.0, 2: 2.0}
    assert runs.scalars("curvature/score/layers.0.down.weight") == {1: 3.0, 2: 3.0}


def test_the_number_of_series_is_bounded(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature, "_SERIES_PER_TOP", 2)
    tracker = CurvatureTracker(1, top=1)
    runs.fit(tracker, runs.module(lambda step: torch.eye(4)[step % 4].tolist()), steps=8, logger=False)
    assert tracker.state_dict()["series"] == ["embed.weight", "layers.0.up.weight"]


def test_histograms(runs: Runs) -> None:
    runs.fit(CurvatureTracker(every_n_steps=5), runs.module(steady), steps=10)
    boards = runs.boards()
    scores = boards.Histograms("curvature/log10_scores")
    assert [event.step for event in scores] == [4, 9]
    # One of the four scores is 0 and has no logarithm.
    assert (scores[0].histogram_value.num, scores[0].histogram_value.max) == (3, pytest.approx(-2.39794))
    probabilities = boards.Histograms("curvature/probabilities")
    assert [event.step for event in probabilities] == [4, 9]
    assert (probabilities[0].histogram_value.num, probabilities[0].histogram_value.sum) == (4, 2.0)


def test_scores_that_are_all_zero_have_no_histogram(runs: Runs) -> None:
    runs.fit(CurvatureTracker(5), runs.module(lambda step: (0.0,) * 4), steps=5)
    assert runs.boards().Tags()["histograms"] == ["curvature/probabilities"]
    assert "| 0.0% |" in table(runs)[4]


def table(runs: Runs) -> dict[int, str]:
    return {
        event.step: event.tensor_proto.string_val[0].decode()
        for event in runs.boards().Tensors("curvature/leaders/text_summary")
    }


def test_heat_map_and_table_are_drawn_at_their_steps_and_at_the_end(runs: Runs) -> None:
    runs.fit(CurvatureTracker(every_n_steps=3, figure_every_n_steps=5, top=2), runs.module(steady), steps=10)
    images = runs.boards().Images("curvature/heat_map")
    assert [event.step for event in images] == [5, 8]  # every six steps; the last logged step is 8
    assert images[0].width == 1300
    assert list(table(runs)) == [5, 8]
    lines = table(runs)[5].splitlines()
    assert len(lines) == 4
    assert lines[2] == "| 1 | `embed.weight` | 4.000e-03 | 57.1% | 1.000 | 4,000 |"


def test_no_figure_is_drawn_twice(runs: Runs) -> None:
    runs.fit(CurvatureTracker(every_n_steps=5, figure_every_n_steps=5), runs.module(steady), steps=10)
    assert [event.step for event in runs.boards().Images("curvature/heat_map")] == [4, 9]


def test_the_last_step_stays_in_the_heat_map_when_columns_are_dropped(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    draw = curvature.draw_heat_map

    def spy(names: Sequence[str], steps: Sequence[int], history: torch.Tensor, **options: Any) -> Figure:
        drawn.append((list(steps), tuple(history.shape)))
        return draw(names, steps, history, **options)

    monkeypatch.setattr(curvature, "draw_heat_map", spy)
    runs.fit(CurvatureTracker(1, heat_map_columns=4), runs.module(steady), steps=9)
    assert drawn == [([1, 3, 5, 7, 8], (5, 4))]


def test_history_is_bounded_and_evenly_spaced(runs: Runs) -> None:
    tracker = CurvatureTracker(every_n_steps=2, heat_map_columns=5)
    runs.fit(tracker, runs.module(steady), steps=50, logger=False)
    state = tracker.state_dict()
    assert state["steps"] == [15, 31, 47]
    assert state["columns"].shape == (3, 4)
    assert state["columns"].dtype == torch.float32


@pytest.mark.parametrize("columns", [3, 100])
def test_series_and_heat_map_continue_in_a_resumed_run(runs: Runs, columns: int) -> None:
    def scores(step: int) -> Sequence[float]:
        return (1.0, 0.5, 0.0, 0.0) if step < 10 else (0.5, 1.0, 0.0, 0.0)

    def make() -> CurvatureTracker:
        return CurvatureTracker(every_n_steps=2, top=1, heat_map_columns=columns)

    resumed = runs.resume(make, runs.module(scores), stop=10, steps=20)
    whole = make()
    runs.fit(whole, runs.module(scores), steps=20, logger=False)
    ours, theirs = resumed.state_dict(), whole.state_dict()
    torch.testing.assert_close(ours.pop("columns"), theirs.pop("columns"))
    assert ours == theirs
    assert ours["series"] == ["embed.weight", "layers.0.up.weight"]
    assert sorted(runs.scalars("curvature/score/embed.weight")) == list(range(1, 20, 2))


def test_without_scores_it_warns_once_and_does_nothing(runs: Runs) -> None:
    tracker = CurvatureTracker(1)
    with pytest.warns(UserWarning, match="logs nothing") as caught:
        runs.fit(tracker, runs.module(lambda step: None), steps=3)
    assert len([warning for warning in caught if "CurvatureTracker" in str(warning.message)]) == 1
    tags = runs.boards().Tags()
    assert (tags["scalars"], tags["images"], tags["histograms"]) == (["train/loss", "epoch"], [], [])


def test_other_ranks_and_other_steps_are_not_logged(runs: Runs) -> None:
    tracker = CurvatureTracker(every_n_steps=2)
    for trainer in (
        SimpleNamespace(global_step=3, is_global_zero=True, loggers=[runs.logger]),
        SimpleNamespace(global_step=4, is_global_zero=False, loggers=[runs.logger]),
    ):
        tracker.on_train_batch_end(trainer, None, None, None, 0)
        tracker.on_train_end(trainer, None)
    assert tracker.state_dict()["steps"] == []


def test_other_loggers_get_the_scalars(runs: Runs, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="csv", version="")
    runs.fit(CurvatureTracker(every_n_steps=5, top=1), runs.module(steady), steps=10, logger=logger)
    header = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"curvature/score/embed.weight", "curvature/probability/embed.weight"} < set(header)


@pytest.mark.parametrize("name", ["BudgetLogger", "CurvatureTracker", "MemoryProfiler", "SupportMonitor"])
def test_every_option_of_every_callback_is_checked_and_explained_on_the_command_line(name: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(getattr(zolit_callbacks, name), "callback")
    text = " ".join(parser.format_help().partition("options:")[2].split())
    explained = dict(re.findall(r"--callback\.(\w+) [A-Z_]+ (.+?) \(type: ", text))
    assert list(explained) == list(inspect.signature(getattr(zolit_callbacks, name)).parameters)
    assert explained["every_n_steps"].startswith("Log")
    with pytest.raises(Exception, match="every_n_steps"):
        parser.parse_args(["--callback.every_n_steps=0"])
