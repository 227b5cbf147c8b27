"""Scores of generated answers on difficult cases, and a mean that is exact in every precision."""

from __future__ import annotations

import math

import pytest
import torch

from zolit.tasks.metrics import MeanScore, Perplexity, TokenLoss, drop_scores, squad_scores


@pytest.mark.parametrize(
    ("answer", "references", "f1", "exact"),
    [
        ("a boat", ["boat"], 1.0, 1.0),  # articles
        ("The  Boat!", ["boat"], 1.0, 1.0),  # case, punctuation, spaces
        ("red boat", ["the boat", "red"], 2 / 3, 0.0),  # the best of several: boat 1/2 and 1/1; red the same
        ("boat boat", ["boat"], 2 / 3, 0.0),  # a repeated word counts as often as both texts have it
        ("", ["boat"], 0.0, 0.0),
        ("the", ["a"], 1.0, 1.0),  # both are empty without articles
        ("ship", ["boat"], 0.0, 0.0),
        ("7.0", ["7"], 0.0, 0.0),  # 70 without the point
        ("U.S.", ["US"], 1.0, 1.0),
        ("well-known", ["well known"], 0.0, 0.0),  # one word: wellknown
    ],
)
def test_squad(answer: str, references: list[str], f1: float, exact: float) -> None:
    scores = squad_scores(answer, references)
    assert scores["f1"] == pytest.approx(f1)
    assert scores["exact_match"] == exact


@pytest.mark.parametrize(
    ("answer", "references", "f1", "exact"),
    [
        ("a boat", [("boat",)], 1.0, 1.0),
        ("7.0", [("7",)], 1.0, 1.0),  # numbers by value
        ("7 points", [("8 points",)], 0.0, 0.0),  # another number: the score is 0
        ("7 points", [("7",)], 0.67, 0.0),
        ("points", [("7 points",)], 0.0, 0.0),
        ("well-known", [("well known",)], 1.0, 1.0),  # a hyphen separates words
        ("boat boat", [("boat",)], 1.0, 0.0),  # bags are sets
        ("Ada", [("Ada", "Ben")], 0.5, 0.0),  # one of two spans
        ("Ada", [("Ada", "Ben"), ("Ada",)], 1.0, 1.0),  # the best of several answers
        ("", [("boat",)], 0.0, 0.0),
        ("1,000", [("1000",)], 1.0, 1.0),  # a number once the comma is removed
        ("$5", [("5",)], 1.0, 1.0),
        ("-5", [("5",)], 1.0, 1.0),  # the hyphen separates two words, and one is empty
    ],
)
def test_drop(answer: str, references: list[tuple[str, ...]], f1: float, exact: float) -> None:
    assert drop_scores(answer, references) == {"f1": f1, "exact_match": exact}


def test_the_mean_is_exact_in_every_precision() -> None:
    mean = MeanScore().to(torch.bfloat16)
    for _ in range(1000):
        mean.update([1.0, 0.0, 1 / 3])
    assert float(mean.compute()) == pytest.approx(4 / 9, abs=1e-6)
    assert mean.compute().dtype == torch.float32


def test_the_mean_over_tokens_is_exact_in_every_precision() -> None:
    loss, perplexity = TokenLoss().to(torch.bfloat16), Perplexity().to(torch.bfloat16)
    for metric in (loss, perplexity):
        for _ in range(1000):
            metric.update(torch.tensor([1.0, 4.0]), torch.tensor([3, 1]))
            metric.update(torch.tensor([1 / 3]), torch.tensor([70]))
    expected = (3 + 4 + 70 / 3) / 74
    assert float(loss.compute()) == pytest.approx(expected, abs=1e-6)
    assert float(perplexity.compute()) == pytest.approx(math.exp(expected), abs=1e-5)
    assert loss.compute().dtype == torch.float32


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_not_hidden(broken: float) -> None:
    for metric in (TokenLoss(), Perplexity()):
        metric.update(torch.tensor([1.0, broken]), torch.tensor([2, 2]))
        metric.update(torch.tensor([1.0]), torch.tensor([2]))
        assert metric.compute().isnan()
        metric.reset()
        metric.update(torch.tensor([1.0]), torch.tensor([2]))
        assert metric.compute().isfinite()
