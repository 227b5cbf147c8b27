"""A fit without a learning rate: it chooses one, says it, learns with it, and resumes with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import nn
from torch.optim.lr_scheduler import LinearLR, SequentialLR, StepLR

import zolit as package
from tests.conftest import Fit, summary
from zolit.training.rate import MakeScheduler, sum_of_squared_factors
from zolit.training.restoring import take_new_rate

AUTO = ("--model.optimizer.lr=auto", "--trainer.val_check_interval=50")
ONE_BATCH = ("--trainer.limit_train_batches=1", "--trainer.log_every_n_steps=1")
LINEAR = (
    "--model.lr_scheduler=torch.optim.lr_scheduler.LinearLR",
    "--model.lr_scheduler.start_factor=1",
    "--model.lr_scheduler.end_factor=0",
    "--model.lr_scheduler.total_iters=50",
)


@pytest.mark.parametrize("method", ["mezo", "curvzo", "per-example", "agzo", "fzoo"])
def test_methods_learn_without_a_search(zolit: Fit, tmp_path: Path, method: str) -> None:
    zolit("fit", f"--config=configs/method/{method}.yaml", *AUTO, "--trainer.max_steps=150")
    assert summary(tmp_path)["accuracy_after"] >= 0.9


def test_the_choice_is_said_in_one_line_counted_and_resumed(
    zolit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cli = zolit("fit", *AUTO, "--trainer.max_steps=50")
    said = [record.message for record in caplog.records if "auto chose" in record.message]
    rate = cli.model.zo.param_groups[0]["lr"]
    assert len(said) == 1
    assert f"chose {rate:.2g} for 50 steps" in said[0]
    assert summary(tmp_path)["forward_passes"] == cli.model.zo.counts["forwards"] > 100
    caplog.clear()
    assert summary(tmp_path)["step_flops_over_forward"] <= 2.0  # the forwards of the choice are not those of a step
    checkpoint = cli.trainer.checkpoint_callback.last_model_path
    again = zolit("fit", *AUTO, "--trainer.max_steps=60", f"--ckpt_path={checkpoint}")
    assert again.model.zo.param_groups[0]["lr"] == rate
    assert not [record for record in caplog.records if "auto chose" in record.message]
    given = zolit("fit", *AUTO, "--trainer.max_steps=60", "--model.optimizer.lr=1e-4", f"--ckpt_path={checkpoint}")
    assert given.model.zo.param_groups[0]["lr"] == 1e-4


def test_a_schedule_begins_at_the_chosen_rate(zolit: Fit) -> None:
    cli = zolit("fit", *AUTO, *LINEAR, *ONE_BATCH, "--trainer.max_steps=5")
    (scheduler,) = (config.scheduler for config in cli.trainer.lr_scheduler_configs)
    (base,) = scheduler.base_lrs
    assert 1e-5 < base < 1e-2
    assert cli.model.zo.param_groups[0]["lr"] == pytest.approx(base * (1 - 5 / 50))


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_schedule_goes_on_after_a_resume(zolit: Fit, tmp_path: Path) -> None:
    run = ("fit", *AUTO, *LINEAR, *ONE_BATCH, "--trainer.max_steps=8")
    saved = (
        "ModelCheckpoint",
        f"dirpath={tmp_path / 'saved'}",
        "every_n_train_steps=4",
        "save_top_k=-1",
        "filename={step}",
    )
    whole = zolit(*run, f"--trainer.callbacks+={saved[0]}", *(f"--trainer.callbacks.{option}" for option in saved[1:]))
    resumed = zolit(*run, f"--ckpt_path={tmp_path / 'saved' / 'step=4.ckpt'}")
    rates = [cli.model.zo.param_groups[0]["lr"] for cli in (resumed, whole)]
    assert 0.0 < rates[0] == rates[1] < 1e-2
    for own, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize(
    ("make", "steps", "expected"),
    [
        (None, 30, 30.0),
        (lambda optimizer: LinearLR(optimizer, 1.0, 0.0, total_iters=300), 300, 100.0),
        (lambda optimizer: StepLR(optimizer, 10, 0.5), 30, 10 * (1 + 1 / 4 + 1 / 16)),
        (lambda optimizer: ReduceLROnPlateau(optimizer, monitor="val/loss"), 30, 30.0),
        (lambda optimizer: SequentialLR(optimizer, [LinearLR(optimizer, 0.1, 1.0, 10)], []), 1, 1.0),
    ],
)
def test_steps_count_by_the_square_of_their_factor(make: MakeScheduler | None, steps: int, expected: float) -> None:
    """The moves of independent steps add up as squares. A rate that falls to 0 moves a third as much."""
    assert sum_of_squared_factors(make, steps) == pytest.approx(expected, rel=0.01)


def test_a_cycle_has_its_own_rates(zolit: Fit) -> None:
    cli = zolit(
        "fit",
        *AUTO,
        "--trainer.max_steps=10",
        "--model.lr_scheduler=torch.optim.lr_scheduler.OneCycleLR",
        "--model.lr_scheduler.max_lr=1e-3",
        "--model.lr_scheduler.total_steps=20",
        "--model.lr_scheduler.cycle_momentum=false",
    )
    assert 0.0 < cli.model.zo.param_groups[0]["lr"] <= 1e-3


def test_bf16_chooses_nearly_the_same(zolit: Fit) -> None:
    rates = [
        zolit("fit", *AUTO, "--trainer.max_steps=1", f"--trainer.precision={precision}").model.zo.param_groups[0]["lr"]
        for precision in ("32-true", "bf16-true", "bf16-mixed")
    ]
    assert rates == pytest.approx([rates[0]] * 3, rel=0.3)
    assert torch.tensor(rates).isfinite().all()


@pytest.mark.parametrize("is_scheduled", [False, True])
@pytest.mark.filterwarnings("ignore:model.optimizer.lr. the schedule of the checkpoint goes on")
def test_a_checkpoint_of_the_start_has_no_rate_yet(is_scheduled: bool) -> None:
    """Its schedule goes on from a factor of 1, which must not be taken for a rate."""
    begun, resumed = package.MeZO(nn.Linear(2, 1)), package.MeZO(nn.Linear(2, 1), lr=1e-4)
    resumed.load_state_dict(begun.state_dict())
    take_new_rate(resumed, is_scheduled)
    assert resumed.needs_rate == is_scheduled
    assert resumed.param_groups[0]["lr"] == (1.0 if is_scheduled else 1e-4)
