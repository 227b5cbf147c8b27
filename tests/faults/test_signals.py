"""A run that a signal ends at any place says so, and ends like one that nobody disturbed when it is resumed."""

from __future__ import annotations

import signal

import pytest

from tests.faults.conftest import Runs
from tests.helpers.runs import assert_equal_runs

STATUS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGKILL": -9}
PLACES = [
    ("import", 1),
    ("setup", 1),
    ("on_sanity_check_start", 1),
    ("on_train_start", 1),
    ("on_train_batch_start", 1),
    ("on_train_batch_start", 4),
    ("on_train_batch_end", 3),
    ("on_train_batch_end", 4),
    ("on_train_batch_end", 6),
    ("on_train_epoch_end", 1),
    ("on_validation_start", 3),
    ("on_validation_batch_end", 8),
    ("on_validation_end", 3),
    ("write", 1),
    ("write", 2),
    ("write", 5),
    ("on_train_batch_end", 14),
    ("on_train_end", 1),
    ("on_fit_end", 1),
    ("on_validation_batch_end", 14),
]
SHORT = {("on_train_batch_end", 4), ("on_validation_batch_end", 8), ("write", 5)}


def test_a_logger_that_keeps_its_points_for_later(runs: Runs) -> None:
    """CSVLogger writes every hundredth step; what a checkpoint lies behind must be written before."""
    logger = ("--trainer.logger=CSVLogger", "--trainer.logger.init_args.name=")
    whole = runs.whole("whole", *logger)
    accident = {"ACCIDENT_AT": "on_train_batch_end", "ACCIDENT_CALL": "7", "ACCIDENT_SIGNAL": "9"}
    assert runs.start("disturbed", *logger, **accident).wait() == -9
    resumed = runs.start("disturbed", *logger, "--ckpt_path=last")
    assert resumed.wait() == 0, resumed.said()
    assert_equal_runs(runs.folder("disturbed"), whole)


@pytest.mark.faults
@pytest.mark.parametrize("first", [("on_validation_batch_end", 8), ("on_train_batch_end", 8)])
def test_stopped_again_after_a_validation_that_was_repeated(runs: Runs, first: tuple[str, int]) -> None:
    whole = runs.whole("whole")
    resume: list[str] = []
    for place, call in (first, ("on_train_batch_start", 1), ("on_train_batch_end", 1)):
        accident = {"ACCIDENT_AT": place, "ACCIDENT_CALL": str(call), "ACCIDENT_SIGNAL": "9"}
        assert runs.start("disturbed", *resume, **accident).wait() == -9
        resume = ["--ckpt_path=last"]
    resumed = runs.start("disturbed", *resume)
    assert resumed.wait() == 0, resumed.said()
    assert_equal_runs(runs.folder("disturbed"), whole)


@pytest.mark.parametrize("name", STATUS)
@pytest.mark.parametrize(
    ("place", "call"), [place if place in SHORT else pytest.param(*place, marks=pytest.mark.faults) for place in PLACES]
)
def test_a_signal_at_a_place(runs: Runs, place: str, call: int, name: str) -> None:
    whole = runs.whole("whole")
    accident = {"ACCIDENT_AT": place, "ACCIDENT_CALL": str(call), "ACCIDENT_SIGNAL": str(int(signal.Signals[name]))}
    process = runs.start("disturbed", **accident)
    assert process.wait() == STATUS[name], process.said()
    assert "Traceback" not in process.said()
    if name != "SIGKILL":
        assert "zolit: stopped by" in process.said()
    saves = list(runs.folder("disturbed").rglob("*.ckpt"))
    resumed = runs.start("disturbed", *(["--ckpt_path=last"] if saves else []))
    assert resumed.wait() == 0, resumed.said()
    assert_equal_runs(runs.folder("disturbed"), whole)
