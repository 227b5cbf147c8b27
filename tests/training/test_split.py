"""Compares two processes over gloo, each with some of the layers, with one process that has all layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.examples import records
from tests.helpers.words import write
from tests.training.test_replicated import start
from zolit import AGZO, CurvZO, MeZO
from zolit.errors import UserError
from zolit.training.split import SplitCollectives, split_layers

STEPS = ("--trainer.max_steps=6", "--trainer.val_check_interval=3")


def fitted(folder: Path, devices: int, *args: str) -> list[dict[str, Any]]:
    """Runs a fit, and returns the results of each process and, last, the checkpoint."""
    strategy = ("--trainer.strategy=split",) if devices > 1 else ()
    done = start(folder, devices, 16, *STEPS, *strategy, *args)
    assert done.returncode == 0, done.stderr
    saved = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(devices)]
    (last,) = folder.rglob("last.ckpt")
    return [*saved, torch.load(last, weights_only=False)]


@pytest.mark.parametrize(
    ("method", "precision"), [("mezo", "bf16-true"), ("curvzo", "32-true"), ("per-example", "32-true")]
)
def test_weights_end_as_those_of_one_process(tmp_path: Path, method: str, precision: str) -> None:
    options = (f"--config=configs/method/{method}.yaml", f"--trainer.precision={precision}")
    first, second, checkpoint = fitted(tmp_path / "two", 2, *options)
    alone, whole = fitted(tmp_path / "one", 1, *options)
    assert first["strategy"] == "SplitStrategy"
    assert first["losses"] == second["losses"] == alone["losses"]
    assert first["metrics"] == second["metrics"] == alone["metrics"]
    layers = 0
    for name, weight in alone["weights"].items():
        here = [rank["weights"][name] for rank in (first, second) if not rank["weights"][name].is_meta]
        layers += len(here) == 1
        assert all(torch.equal(own, weight) for own in here), name
        assert torch.equal(checkpoint["state_dict"][f"model.{name}"], whole["state_dict"][f"model.{name}"]), name
    assert layers == sum(".layers." in name for name in alone["weights"])
    assert first["weights"]["model.layers.2.mlp.up_proj.weight"].is_meta
    assert second["weights"]["model.layers.0.mlp.up_proj.weight"].is_meta


def test_a_run_resumes_and_is_tested_with_the_best_weights(tmp_path: Path) -> None:
    _, _, half = fitted(tmp_path / "half", 2)
    (last,) = (tmp_path / "half").rglob("last.ckpt")
    *_, resumed = fitted(tmp_path / "resumed", 2, "--trainer.max_steps=12", f"--ckpt_path={last}")
    *_, through = fitted(tmp_path / "through", 1, "--trainer.max_steps=12")
    for name, weight in through["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], weight), name
    assert any(not torch.equal(weight, resumed["state_dict"][name]) for name, weight in half["state_dict"].items())


@pytest.mark.parametrize("task", [pytest.param("copa", marks=pytest.mark.slow), "squad", "text"])
def test_answers_are_those_of_one_process(tmp_path: Path, task: str) -> None:
    """They are equal up to rounding. No cache is used: a process without the first layer would not know its length."""
    file = write(tmp_path / "data.jsonl", records(task, 24))
    options = [f"--config=configs/task/{task}.yaml", "--config=configs/tuning/lora.yaml"]
    options += ["--model.tuning.targets=[q_proj,v_proj]"]
    options += [f"--data.{split}_file={file}" for split in ("train", "validation")]
    options += [f"--data.{split}_examples=24" for split in ("train", "validation")]
    options += ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.precision=32-true"]
    summaries = []
    for devices in (1, 2):
        fitted(tmp_path / str(devices), devices, *options)
        (found,) = (tmp_path / str(devices)).rglob("summary.json")
        summaries.append(json.loads(found.read_text()))
    names = [f"{summaries[0]['metric']}_{when}" for when in ("before", "after")] + ["loss_before", "loss_after"]
    assert [summaries[0][name] for name in names] == pytest.approx([summaries[1][name] for name in names], rel=1e-5)


def test_methods_that_read_all_weights_are_refused() -> None:
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    for optimizer, stage in ((AGZO(model), "ActivationSubspace"), (MeZO(model, momentum=0.9), "SGD")):
        with pytest.raises(UserError, match=rf"no process has all weights, and {stage} may read them"):
            SplitCollectives(optimizer)
    SplitCollectives(CurvZO(model))


def test_models_that_cannot_be_split() -> None:
    with pytest.raises(UserError, match=r"needs a model with a list of layers"):
        split_layers(nn.Linear(3, 3), 0, 2)
    with pytest.raises(UserError, match=r"4 processes are too many for a model of 3 layers"):
        split_layers(nn.ModuleList([nn.Linear(3, 3) for _ in range(3)]), 0, 4)

    class Pair(nn.Module):
        def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
            return hidden, hidden

    pairs = nn.ModuleList([Pair(), Pair()])
    split_layers(pairs, 0, 2)
    with pytest.raises(UserError, match=r"layers whose output has the shape and dtype of their input"):
        pairs[0](torch.ones(2))


def test_a_model_is_split_once() -> None:
    layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(3)])
    rank_of_tensor = split_layers(layers, 1, 2)
    forwards = [layer.forward for layer in layers]
    assert split_layers(layers, 1, 2) == rank_of_tensor
    assert [layer.forward for layer in layers] == forwards
    assert [weight.is_meta for weight in layers.parameters()] == [owner == 0 for owner in rank_of_tensor.values()]


def test_a_split_model_is_not_probed_in_place() -> None:
    layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(4)])  # the first is not the last of its process
    split_layers(layers, 0, 2)
    optimizer = MeZO(layers, lr=1e-6)
    with pytest.raises(UserError, match=r"as a stream \(its loss is not finite\), and with trainer.strategy `split`"):
        optimizer.step(lambda: layers[0](torch.full((1, 3), torch.nan)).mean())
