"""Direct feedback trains on the score of answers, where answers are chosen in one forward."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Fit, summary
from tests.helpers.examples import records
from tests.helpers.words import write
from zolit.errors import UserError

METHOD = ("--config=configs/method/direct-feedback.yaml", "--model.objective=metric")


@pytest.mark.parametrize("micro", ["null", "5"])
def test_accuracy_rises(zolit: Fit, tmp_path: Path, micro: str) -> None:
    """The first step looks for the writers, and makes 16 forwards with noise. Three of the later steps make one."""
    steps = ("--trainer.max_steps=40", "--trainer.val_check_interval=40", "--model.optimizer.init_args.lr=2e-3")
    zolit("fit", *METHOD, *steps, f"--model.micro_batch_size={micro}")
    found = summary(tmp_path)
    assert found["accuracy_before"] == 0.5
    assert found["accuracy_after"] > 0.9
    assert found["forward_passes"] == 1 + 16 + 40 + 3


@pytest.mark.parametrize("task", ["sst2", "copa"])
def test_other_answers(zolit: Fit, tmp_path: Path, task: str) -> None:
    """Words of one token, and answers of several tokens."""
    cli = zolit("fit", *options(tmp_path, task), config=f"configs/task/{task}.yaml")
    report = cli.model.zo.last_step
    assert not report.skipped
    assert report.forward_passes == 1


def test_generated_answers_are_refused(zolit: Fit, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"this method needs one forward .* set model.objective lm"):
        zolit("fit", *options(tmp_path, "squad"), config="configs/task/squad.yaml")


def options(folder: Path, task: str) -> list[str]:
    file = write(folder / "data.jsonl", records(task, 24))
    data = [f"--data.{part}_file={file}" for part in ("train", "validation")]
    data += [f"--data.{part}_examples=24" for part in ("train", "validation")]
    steps = ["--trainer.max_steps=3", "--trainer.val_check_interval=3", "--trainer.log_every_n_steps=1"]
    return [*METHOD, "--model.name_or_path=zolit/quickstart/model", *data, *steps, "--data.batch_size=8"]
