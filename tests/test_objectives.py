"""What is minimized, against closed forms over a plain forward, and training on what has no gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from tests.conftest import Fit, summary
from tests.tasks.examples import records
from tests.tasks.words import write
from tests.test_language_model import MODELS, alone, answers, made
from zolit import quickstart
from zolit.language_model import LanguageModel
from zolit.objectives import Kind, Objective
from zolit.tasks import Classification, EncodedAnswers, SQuAD
from zolit.tuning import Full


def expected(kind: str, found: list[float], right: tuple[int, ...]) -> float:
    if kind == "lm":
        return -found[right[0]]
    if kind == "metric":
        return float(found.index(max(found)) not in right)
    return math.log(sum(math.exp(score) for score in found)) - found[right[0]]


@pytest.mark.parametrize("kind", ["task", "lm", "metric"])
@pytest.mark.parametrize("name", MODELS)
def test_losses_of_answers(name: str, kind: Kind) -> None:
    model, plain = made(name), answers()
    right = [(1,), (0, 1), (2,), (0,), (1,), (3, 0), (0,)]
    right = [_within(places, own) for places, own in zip(right, plain.answers, strict=True)]
    data = EncodedAnswers(plain.prompts, plain.answers, right, plain.accepted, 0)
    language = LanguageModel(model, Full())
    objective = Objective(kind, Classification(), None)
    order = [6, 1, 0, 3, 2, 5, 4]
    with torch.no_grad():
        trained = objective.losses(language, data[order])
        looked = objective.evaluate(language, data[order])
    scores = [alone(model, data, i) for i in order]
    wanted = torch.tensor([expected(kind, found, data.right[i]) for found, i in zip(scores, order, strict=True)])
    torch.testing.assert_close(trained, wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(looked.losses, wanted, atol=1e-4, rtol=0)
    hits = [found.index(max(found)) in data.right[i] for found, i in zip(scores, order, strict=True)]
    assert looked.scores == {"accuracy": hits}


def _within(right: tuple[int, ...], own: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(min(place, len(own) - 1) for place in right))


def test_what_is_written_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = answers(3)
    single = [own[:1] for own in plain.answers]
    data = EncodedAnswers(plain.prompts, single, [(0,)] * 3, [("a boat",), ("x", "red drum"), ("no",)], 0)
    language = LanguageModel(made("llama"), Full())
    monkeypatch.setattr(language, "write", lambda *_: ["The boat", "drum", "yes"])
    model = language.model
    likelihood = torch.tensor([alone(model, data, i)[0] for i in range(3)])
    tokenizer = AutoTokenizer.from_pretrained(quickstart.MODEL)
    losses: dict[Kind, Tensor] = {"task": -likelihood, "metric": torch.tensor([0.0, 1 / 3, 1.0])}
    for kind, wanted in losses.items():
        objective = Objective(kind, SQuAD(), tokenizer)
        with torch.no_grad():
            found = objective.evaluate(language, data[[0, 1, 2]])
            trained = objective.losses(language, data[[0, 1, 2]])
        assert found.scores["f1"] == pytest.approx([1.0, 2 / 3, 0.0])
        assert found.scores["exact_match"] == [1.0, 0.0, 0.0]
        torch.testing.assert_close(found.losses, wanted, atol=1e-4, rtol=0)
        torch.testing.assert_close(trained, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["mezo", "dominant-layer"])
@pytest.mark.parametrize("task", ["sst2", "squad", "copa"])
def test_training_on_a_metric(zolit: Fit, tmp_path: Path, task: str, method: str) -> None:
    """Weights move where a probe changes an answer; the loss logged is one minus what evaluation logs."""
    file = write(tmp_path / "data.jsonl", records(task, 24))
    options = [
        f"--config=configs/task/{task}.yaml",
        "--model.name_or_path=zolit/quickstart/model",
        f"--data.train_file={file}",
        f"--data.validation_file={file}",
        "--data.train_examples=24",
        "--data.validation_examples=24",
        "--model.objective=metric",
        "--model.optimizer.eps=0.3",
        "--model.optimizer.lr=1e-3",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=2",
        "--trainer.log_every_n_steps=1",
        "--data.batch_size=8",
    ]
    cli = zolit("fit", *options, config=f"configs/method/{method}.yaml")
    metrics = cli.trainer.callback_metrics
    assert float(metrics["val/loss"]) == pytest.approx(
        1 - float(metrics[f"val/{cli.datamodule.task.metrics[0]}"]), abs=1e-5
    )
    assert summary(tmp_path)["steps"] == 2
    (batch, *_) = cli.datamodule.val_dataloader()
    losses = cli.model.objective(batch)
    assert losses.shape == batch.labels.shape
    assert ((losses >= 0) & (losses <= 1)).all()
