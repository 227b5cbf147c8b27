"""Averages of weights by Lightning's callbacks: validated, saved, resumed; or refused in one sentence."""

from __future__ import annotations

import contextlib
import copy
import functools
import pickle
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from tests.conftest import Fit
from zolit import MeZO
from zolit.errors import Stopped, UserError
from zolit.training.averaging import prepare_averaging
from zolit.training.module import ZerothOrderModule

EMA = ("--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.5")
RUN = ("--config=configs/method/mezo.yaml", "--model.optimizer.lr=1e-3", "--trainer.val_check_interval=4")


def weights(file: Path | str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the averaged and the current weights of a checkpoint."""
    content = torch.load(file, weights_only=True)
    return content["state_dict"], content["current_model_state"]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path.")
def test_averages_are_validated_saved_and_resumed(zolit: Fit, tmp_path: Path) -> None:
    plain = zolit("fit", *RUN, "--trainer.max_steps=8", f"--trainer.default_root_dir={tmp_path}").model.state_dict()
    for file in tmp_path.rglob("*.ckpt"):
        file.unlink()
    whole = zolit("fit", *RUN, *EMA, "--trainer.max_steps=8")
    (last,) = tmp_path.rglob("last.ckpt")
    averaged, current = weights(last)
    assert same(current, plain)  # the path of the run is that without the callback
    assert not same(averaged, current)
    assert same(whole.model.state_dict(), averaged)
    loss = float(whole.trainer.callback_metrics["val/loss"])
    validated = zolit("validate", *RUN[:1], f"--ckpt_path={last}")
    assert float(validated.trainer.callback_metrics["val/loss"]) == pytest.approx(loss, rel=1e-6)

    half = tmp_path / "half"
    zolit("fit", *RUN, *EMA, "--trainer.max_steps=4", f"--trainer.logger.init_args.save_dir={half}")
    (first,) = half.rglob("last.ckpt")
    again = tmp_path / "again"
    resumed = ("--trainer.max_steps=8", f"--ckpt_path={first}", f"--trainer.logger.init_args.save_dir={again}")
    zolit("fit", *RUN, *EMA, *resumed)
    (second,) = again.rglob("last.ckpt")
    assert all(same(*pair) for pair in zip(weights(second), (averaged, current), strict=True))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((*EMA, "--trainer.precision=bf16-true"), "trainer.precision: bf16-true rounds the small steps"),
        (("--config=configs/method/zo-act.yaml", *EMA), "EMAWeightAveraging cannot average the weights that this"),
        (
            (
                "--trainer.callbacks+=StochasticWeightAveraging",
                "--trainer.callbacks.swa_lrs=1e-3",
                "--trainer.callbacks.device=null",
            ),
            "use WeightAveraging or EMAWeightAveraging",
        ),
    ],
)
def test_refused(zolit: Fit, options: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        zolit("fit", *options, "--trainer.max_steps=2")


class Positions(torch.nn.Module):
    """A weight and integers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.register_buffer("positions", torch.arange(100))


def test_integers_are_not_averaged() -> None:
    """An average rounds them down: position 3 would become 2."""
    callback = EMAWeightAveraging(decay=0.9)
    trainer = pl.Trainer(accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False)
    prepare_averaging(trainer)
    model = Positions()
    average = AveragedModel(model, avg_fn=callback._kwargs["avg_fn"], use_buffers=callback._use_buffers)
    for _ in range(3):
        average.update_parameters(model)
    assert torch.equal(average.module.positions, model.positions)


def test_copies_of_the_module() -> None:
    """They share the factory of the optimizer, which refers to the trainer when it comes from the command line."""
    module = ZerothOrderModule("zolit/quickstart/model", optimizer=functools.partial(MeZO, lr=threading.Lock()))
    module.configure_model()
    copied = copy.deepcopy(module)
    assert copied.model is not module.model
    assert copied._language.model is copied.model
    assert same(copied.state_dict(), module.state_dict())
    assert pickle.loads(pickle.dumps(ZerothOrderModule("zolit/quickstart/model"))).name_or_path == module.name_or_path


@pytest.mark.parametrize("averages", [True, False])
def test_a_run_does_not_stop_while_the_model_has_the_averaged_weights(averages: bool) -> None:
    """A checkpoint would take them for the current ones."""
    module: Any = ZerothOrderModule("zolit/quickstart/model")
    module._trainer = SimpleNamespace(
        callbacks=[EMAWeightAveraging()] * averages,
        state=SimpleNamespace(fn="fit"),
        sanity_checking=False,
        world_size=1,
    )
    module._stop.signum = signal.SIGTERM
    with contextlib.nullcontext() if averages else pytest.raises(Stopped):
        module.on_validation_batch_end(None, None, 0)
    with pytest.raises(Stopped):
        module.on_validation_end()
    module._signals.close()
