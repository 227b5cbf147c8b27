"""Steps of a linear probe in a plain loop: what they fit, what they keep, and when they make no forward."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers.classifier import Classifier, batch, closure, newton
from tests.helpers.tiny import same, weights_of
from zolit import LinearProbe, UserError, ZerothOrder
from zolit.optim import AnswerRegression, Answers, BasePoint, Collectives, NoProbes, Step
from zolit.optim.updates.logistic import scales_of

WORDS = [2, 7, 3, 9, 0]


def made(classes: int = 3, tied: bool = False, dtype: torch.dtype = torch.float32, **options: Any) -> LinearProbe:
    return LinearProbe(Classifier(tied).to(dtype), words=WORDS[:classes], **options)


def step(optimizer: LinearProbe, examples: range, classes: int = 3, losses: Callable[[], Tensor] | None = None) -> None:
    ids, answers = batch(examples, classes)
    optimizer.step(losses or closure(optimizer.model, WORDS[:classes], ids, answers), answers=answers)


def features(model: nn.Module, examples: range, bias: bool) -> Tensor:
    """Returns the hidden state at the last token of each example, and a 1 for the bias, in float64."""
    ids, _ = batch(examples, 2)
    hidden = model.hidden(ids)[:, -1].detach().double()
    return torch.cat([hidden, hidden.new_ones(len(hidden), 1)], 1) if bias else hidden


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("tied", [False, True])
def test_equals_newtons_method_on_all_examples_so_far(classes: int, tied: bool) -> None:
    optimizer = made(classes, tied, l2=0.1)
    plain = weights_of(optimizer.model)
    for first in (0, 8, 16):
        step(optimizer, range(first, first + 8), classes)
        seen = range(first + 8)
        inputs = features(optimizer.model, seen, bias=not tied)
        expected = newton(inputs, batch(seen, classes)[1].classes, classes, 0.1 * scales_of(inputs).square())
        probabilities = (inputs @ optimizer.model.head.zo_probe.detach().double().T).softmax(1)
        torch.testing.assert_close(probabilities, (inputs @ expected.T).softmax(1), atol=1e-4, rtol=0)
    moved = weights_of(optimizer.model)
    assert {name for name in plain if not torch.equal(plain[name], moved[name])} == {"head.zo_probe"}
    assert optimizer.last_step.total_forward_passes == 3


def test_known_examples_cost_no_forward_and_change_nothing() -> None:
    optimizer = made()
    step(optimizer, range(8))
    kept = weights_of(optimizer.model)
    step(optimizer, range(2, 6), losses=lambda: 1 / 0)  # type: ignore[arg-type, return-value]  # is not called
    report = optimizer.last_step
    assert (report.forward_passes, report.total_forward_passes, report.losses) == (0, 1, ())
    assert same(weights_of(optimizer.model), kept)
    ids, answers = batch(range(2, 6), 3)
    with torch.no_grad():
        expected = float(closure(optimizer.model, WORDS[:3], ids, answers)().mean())
    assert report.loss == pytest.approx(expected, rel=1e-5)
    step(optimizer, range(6, 10))  # two are new
    assert optimizer.last_step.forward_passes == 1
    assert optimizer.state_dict()["zo"]["update"]["examples"].tolist() == list(range(10))


def test_an_example_counts_once() -> None:
    once, again = made(), made()
    step(once, range(6))
    ids, answers = batch(range(6), 3)
    rows = torch.tensor([0, 1, 2, 3, 4, 5, 2, 2, 5])
    twice = Answers(answers.examples[rows], answers.classes[rows], answers.columns[rows])
    again.step(closure(again.model, WORDS[:3], ids[rows], twice), answers=twice)
    torch.testing.assert_close(again.model.head.zo_probe, once.model.head.zo_probe)


def test_micro_batches_and_other_columns() -> None:
    """The head is called once for each part, and the answer may be at any position, as for masked models."""
    whole, parts = made(), made()
    ids, answers = batch(range(6), 3)
    columns = torch.tensor([1, 4, 0, 2, 3, 1])
    at = Answers(answers.examples, answers.classes, columns)

    def losses(model: nn.Module, *slices: slice) -> Tensor:
        logits = torch.cat([model(ids[part]) for part in slices])[torch.arange(6), columns][:, WORDS[:3]]
        return functional.cross_entropy(logits, answers.classes, reduction="none")

    whole.step(lambda: losses(whole.model, slice(6)), answers=at)
    parts.step(lambda: losses(parts.model, slice(4), slice(4, 6)), answers=at)
    torch.testing.assert_close(parts.model.head.zo_probe, whole.model.head.zo_probe)
    expected = whole.model.hidden(ids)[torch.arange(6), columns]
    torch.testing.assert_close(whole.state_dict()["zo"]["update"]["features"], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_ends_alike_to_the_bit(dtype: torch.dtype) -> None:
    whole, begun, resumed = (made(dtype=dtype) for _ in range(3))
    for optimizer in (whole, begun):
        step(optimizer, range(8))
        step(optimizer, range(8, 16))
    file = io.BytesIO()
    torch.save({"model": begun.model.state_dict(), "optimizer": begun.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed.model.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    for optimizer in (whole, resumed):
        step(optimizer, range(4, 8))
        step(optimizer, range(16, 24))
    assert same(weights_of(whole.model), weights_of(resumed.model))
    assert whole.last_step == resumed.last_step or whole.last_step.losses == resumed.last_step.losses
    assert resumed.last_step.total_forward_passes == 3
    assert whole.state_dict()["zo"]["update"]["features"].dtype == torch.float32


def test_a_loss_that_is_not_finite_skips_the_step() -> None:
    optimizer = made()
    step(optimizer, range(8))
    kept = weights_of(optimizer.model)
    with pytest.warns(RuntimeWarning, match="are not all finite"):
        step(optimizer, range(8, 16), losses=lambda: optimizer.model(batch(range(8, 16), 3)[0])[:, -1, 0] * torch.nan)
    assert optimizer.last_step.skipped
    assert same(weights_of(optimizer.model), kept)
    assert optimizer.state_dict()["zo"]["update"]["examples"].tolist() == list(range(8))
    step(optimizer, range(8, 16))
    assert optimizer.state_dict()["zo"]["update"]["examples"].tolist() == list(range(16))


def test_it_learns_what_a_frozen_model_knows() -> None:
    """The classes are those of a linear map of the hidden state, which the head does not know."""
    optimizer, teacher = made(3), torch.randn(3, 6, generator=torch.Generator().manual_seed(5))

    def labelled(examples: range) -> tuple[Tensor, Answers]:
        ids, answers = batch(examples, 3)
        classes = (optimizer.model.hidden(ids)[:, -1].detach() @ teacher.T).argmax(1)
        return ids, Answers(answers.examples, classes, answers.columns)

    def accuracy() -> float:
        ids, answers = labelled(range(1_000, 1_400))
        return float((optimizer.model(ids)[:, -1, WORDS[:3]].argmax(1) == answers.classes).double().mean())

    before = accuracy()
    ids, answers = labelled(range(400))
    optimizer.step(closure(optimizer.model, WORDS[:3], ids, answers), answers=answers)
    assert before < 0.6
    assert accuracy() > 0.9


def test_a_step_that_is_undone_keeps_no_example() -> None:
    optimizer = made()
    step(optimizer, range(4))
    kept = weights_of(optimizer.model)
    ids, answers = batch(range(4, 8), 3)
    losses = closure(optimizer.model, WORDS[:3], ids, answers)
    with torch.no_grad():
        optimizer.update.prepare(BasePoint(optimizer.model, losses, Collectives(), Step(0, 1), 0.0, answers))
    optimizer.update.rollback()
    step(optimizer, range(4))
    assert same(weights_of(optimizer.model), kept)
    assert optimizer.update.state_dict()["examples"].tolist() == list(range(4))


class Other(Collectives):
    """Collectives of two ranks, the other of which has given examples and classes, and this model."""

    size = 2

    def __init__(self, model: nn.Module, examples: range) -> None:
        ids, answers = batch(examples, 3)
        self._hidden = model.hidden(ids)[:, -1].detach()
        self._ids = torch.stack([answers.examples, answers.classes])

    def all_gather(self, own: Tensor) -> Tensor:
        return torch.cat([own, self._ids if own.dtype == torch.int64 else self._hidden.T], dim=-1)


def test_examples_of_all_ranks_are_fitted() -> None:
    whole, ranks = made(), made()
    step(whole, range(8))
    ranks.collectives = Other(ranks.model, range(4, 8))
    step(ranks, range(4))
    torch.testing.assert_close(ranks.model.head.zo_probe, whole.model.head.zo_probe)
    step(ranks, range(4), losses=lambda: 1 / 0)  # type: ignore[arg-type, return-value]  # is not called
    ranks.collectives = Other(ranks.model, range(8, 12))
    step(ranks, range(4))  # this rank has no new example, and the other has
    assert ranks.last_step.forward_passes == 1
    assert sorted(ranks.state_dict()["zo"]["update"]["examples"].tolist()) == list(range(12))


def test_refusals() -> None:
    optimizer = made()
    ids, answers = batch(range(4), 3)
    with pytest.raises(UserError, match="step: LinearProbe fits the correct answers of a batch"):
        optimizer.step(closure(optimizer.model, WORDS[:3], ids, answers))
    with pytest.raises(UserError, match=r"model.optimizer: LinearProbe fits the cross-entropy over the label words"):
        step(optimizer, range(4), losses=lambda: 16.0 * closure(optimizer.model, WORDS[:3], ids, answers)())
    with pytest.raises(UserError, match="needs a model that calls its output head once"):
        step(optimizer, range(4), losses=lambda: optimizer.model(ids[:2])[:, -1, 0])
    with pytest.raises(UserError, match="l2: the penalty must be positive"):
        made(l2=0.0)
    with pytest.raises(UserError, match=r"use the method zolit.LinearProbe, which adds them"):
        ZerothOrder(Classifier(), estimator=NoProbes(), update=AnswerRegression())
