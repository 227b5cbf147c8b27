from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from zolit_callbacks import BudgetLogger

from tests.helpers.reporting import Runs

EXPECTED = {
    "budget/units": 2.0,
    "budget/unit_share": 0.5,
    "budget/blocks": 2.0,
    "budget/block_share": 0.5,
    "budget/parameters": 4600.0,
    "budget/parameter_share": 4600 / 5210,
    "budget/probability_min": 0.25,
    "budget/probability_median": 0.375,
    "budget/probability_max": 1.0,
    "budget/clipped_share": 0.25,
}


def test_scalars_have_the_modules_steps(runs: Runs) -> None:
    runs.fit(BudgetLogger(every_n_steps=3), runs.module(lambda step: None), steps=10)
    loss = runs.scalars("train/loss")
    for tag, value in EXPECTED.items():
        assert runs.scalars(tag) == pytest.approx({2: value, 5: value, 8: value}), tag
    assert {step: loss[step] for step in (2, 5, 8)} == {2: 2.0, 5: 5.0, 8: 8.0}


def test_scalars_have_the_steps_of_lightnings_own(runs: Runs) -> None:
    runs.fit(BudgetLogger(every_n_steps=4), runs.module(lambda step: None), steps=10, log_every_n_steps=4)
    assert list(runs.scalars("budget/units")) == list(runs.scalars("train/loss")) == [3, 7]


def test_csv_logger(runs: Runs, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="csv", version="")
    runs.fit(BudgetLogger(every_n_steps=5), runs.module(lambda step: None), steps=10, logger=logger)
    with (tmp_path / "csv" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["budget/units"]]
    assert [int(row["step"]) for row in rows] == [4, 9]
    assert {tag: float(rows[0][tag]) for tag in EXPECTED} == pytest.approx(EXPECTED)


@pytest.mark.parametrize(
    ("probabilities", "least", "median"), [((0.0, 0.5, 0.25, 0.0), 0.25, 0.375), ((0.0,) * 4, 0.0, 0.0)]
)
def test_blocks_that_cannot_be_perturbed_do_not_count(
    runs: Runs, probabilities: tuple[float, ...], least: float, median: float
) -> None:
    module = runs.module(lambda step: None)
    made = module.training_step

    def training_step(batch: int, batch_idx: int) -> dict[str, Any]:
        outputs = made(batch, batch_idx)
        pi = torch.tensor(probabilities, dtype=torch.float64)
        outputs["zo"] = replace(outputs["zo"], selection=replace(outputs["zo"].selection, probabilities=pi))
        return outputs

    module.training_step = training_step
    runs.fit(BudgetLogger(every_n_steps=1), module, steps=1)
    assert runs.scalars("budget/probability_min") == {0: least}
    assert runs.scalars("budget/probability_median") == {0: median}


def test_without_logger(runs: Runs) -> None:
    assert runs.fit(BudgetLogger(1), runs.module(lambda step: None), steps=3, logger=False).global_step == 3


def test_other_steps_are_not_logged() -> None:
    BudgetLogger(every_n_steps=4).on_train_batch_end(SimpleNamespace(global_step=3), None, None, None, 0)
