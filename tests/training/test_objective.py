"""Compares objectives with closed forms over a plain forward; trains on a metric without gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import Fit, summary
from tests.helpers.examples import records
from tests.helpers.words import write
from tests.models.test_language_model import MODELS, alone, answers, made
from zolit import quickstart
from zolit.data.datamodule import PromptedData
from zolit.data.encoded import EncodedAnswers
from zolit.data.tokenization import encode_continuations
from zolit.errors import UserError
from zolit.models.language_model import LanguageModel
from zolit.models.tuning import Full
from zolit.tasks.boolq import BoolQ
from zolit.tasks.classification import Classification
from zolit.tasks.copa import COPA
from zolit.tasks.record import ReCoRD
from zolit.tasks.rte import RTE
from zolit.tasks.squad import SQuAD
from zolit.tasks.sst2 import SST2
from zolit.training.objective import Kind, Objective


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
    data = EncodedAnswers(plain.prompts, plain.answers, right, plain.references, 0)
    language = LanguageModel(model, Full())
    objective = Objective(kind, Classification(), None)
    order = [6, 1, 0, 3, 2, 5, 4]
    with torch.no_grad():
        trained = objective.losses(language, data[order])
        looked = objective.evaluate(language, data[order])
    scores = [alone(model, data, i) for i in order]
    wanted = torch.tensor([expected(kind, found, data.correct[i]) for found, i in zip(scores, order, strict=True)])
    torch.testing.assert_close(trained, wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(looked.losses, wanted, atol=1e-4, rtol=0)
    hits = [found.index(max(found)) in data.correct[i] for found, i in zip(scores, order, strict=True)]
    assert looked.scores == {"accuracy": hits}


def _within(right: tuple[int, ...], own: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(min(place, len(own) - 1) for place in right))


def test_generated_answers_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = answers(3)
    single = [own[:1] for own in plain.answers]
    data = EncodedAnswers(plain.prompts, single, [(0,)] * 3, [("a boat",), ("x", "red drum"), ("no",)], 0)
    language = LanguageModel(made("llama"), Full())
    monkeypatch.setattr(language, "generate", lambda *_: ["The boat", "drum", "yes"])
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


@pytest.mark.parametrize(
    ("name", "content_free"),
    [
        ("sst2", [" It was"] * 6),
        ("rte", ['\nDoes this mean that "" is true? Yes or No?\n'] * 6),
        ("boolq", [" ?\n"] * 6),
        ("copa", [" because", " because", " so", " so", " because", " because"]),
        ("record", ["\n-"] * 6),
    ],
)
def test_calibrated_scores(name: str, content_free: list[str], tmp_path: Path) -> None:
    """Log-likelihoods minus those after the content-free prompt, as in a plain loop. Training is not calibrated."""
    rows = records(name, 6)
    file, folder = write(tmp_path / "rows.jsonl", rows), str(quickstart.MODEL)
    task = {"sst2": SST2, "rte": RTE, "boolq": BoolQ, "copa": COPA, "record": ReCoRD}[name]()
    data = PromptedData(
        name_or_path=folder,
        task=task,
        train_file=file,
        validation_file=file,
        calibrated=True,
        eval_batch_size=4,
        batch_size=4,
    )
    data.setup("fit")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    language = LanguageModel(AutoModelForCausalLM.from_pretrained(folder).eval(), Full())
    objective = Objective("task", task, None)
    for batch in data.val_dataloader():
        with torch.no_grad():
            table = objective.choice_scores(language, batch)
            found = objective.evaluate(language, batch)
        assert found.chosen is not None
        assert torch.equal(found.chosen, table.argmax(1))
        for place, index in enumerate(batch.indices.tolist()):
            question = task.question(rows[index])
            wanted = []
            for answer in question.answers:
                ((prompt, (tokens,)), (nothing, (same,))) = encode_continuations(
                    tokenizer, [question.prompt, content_free[index]], [[answer]] * 2
                )
                assert tokens == same
                scores = [
                    alone(language.model, EncodedAnswers([torch.tensor(ids)], [[torch.tensor(tokens)]], [], [], 0), 0)[
                        0
                    ]
                    for ids in (prompt, nothing)
                ]
                wanted.append((scores[0] - scores[1]) * len(tokens))
            own = table[place, : len(wanted)]
            torch.testing.assert_close(own - own[0], torch.tensor(wanted) - wanted[0], atol=1e-4, rtol=0)
            assert bool((table[place, len(wanted) :] == -torch.inf).all())
    assert next(iter(data.train_dataloader())).content_free is None


def test_generated_answers_are_not_calibrated(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", records("squad", 2))
    data = PromptedData(name_or_path=str(quickstart.MODEL), task=SQuAD(), validation_file=file, calibrated=True)
    with pytest.raises(UserError, match=r"--data.calibrated needs a task with choices"):
        data.setup("validate")


def test_per_example_directions_of_words_of_several_tokens(zolit: Fit) -> None:
    """Each word is a row; the rows of an example share its direction and its loss."""
    words = '{"0": " it was bad", "1": " it was really great"}'
    options = [f"--data.task.init_args.label_words={words}", "--data.batch_size=4", "--model.micro_batch_size=3"]
    options += ["--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    cli = zolit("fit", "--config=configs/method/per-example.yaml", *options)
    report = cli.model.zo.last_step
    assert report is not None
    assert len(report.coefficients) == 8
    assert report.coefficients[::2] == report.coefficients[1::2]
    assert len(set(report.coefficients)) == 4


def test_per_example_directions_of_generated_answers_are_refused(zolit: Fit, tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl", records("squad", 24))
    options = [f"--data.{part}_file={file}" for part in ("train", "validation")]
    options += ["--data.train_examples=24", "--data.validation_examples=24", "--model.objective=metric"]
    options += ["--config=configs/method/per-example.yaml", "--trainer.max_steps=1", "--trainer.val_check_interval=1"]
    options += ["--trainer.log_every_n_steps=1"]
    with pytest.raises(UserError, match=r"this method needs one forward"):
        zolit("fit", "--model.name_or_path=zolit/quickstart/model", *options, config="configs/task/squad.yaml")


@pytest.mark.parametrize("method", ["mezo", "dominant-layer"])
@pytest.mark.parametrize("task", ["sst2", "squad", "copa"])
def test_training_on_a_metric(zolit: Fit, tmp_path: Path, task: str, method: str) -> None:
    """A probe that changes an answer moves the weights; the logged loss is one minus the logged score."""
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
