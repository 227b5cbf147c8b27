"""The regression of the linear probe, against Newton's method and by its scales."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.classifier import newton
from zolit.optim.updates.logistic import fit_logistic, scales_of


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("count", [3, 60])
@pytest.mark.parametrize("l2", [0.03, 3.0])
def test_equals_newtons_method(classes: int, count: int, l2: float) -> None:
    """Also with fewer examples than features, with features of very different sizes, and far from the start."""
    generator = torch.Generator().manual_seed(classes)
    features = torch.randn(count, 8, generator=generator, dtype=torch.float64) * torch.logspace(-3, 3, 8).double() + 0.1
    labels = torch.randint(classes, (count,), generator=generator)
    start = torch.randn(classes, 8, generator=generator, dtype=torch.float64) / features.abs().mean(0)
    found = fit_logistic(features, labels, start, l2)
    expected = newton(features, labels, classes, l2 * scales_of(features).square())
    torch.testing.assert_close(features @ found.T, features @ expected.T, atol=2e-3, rtol=2e-3)


def test_a_scale_is_the_deviation_over_the_examples_and_the_origin() -> None:
    features = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)).double() + 3.0
    features[:, 2] = 0.0
    whole = torch.cat([features, torch.zeros(1, 4).double()])
    expected = whole.std(0, correction=0) * 2.0
    expected[2] = 1.0
    torch.testing.assert_close(scales_of(features), expected)


def test_the_unit_of_a_feature_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    labels, units = torch.randint(2, (20,), generator=generator), torch.tensor([1e-3, 1.0, 1e3]).double()
    start = torch.zeros(2, 3).double()
    plain, scaled = fit_logistic(features, labels, start, 0.3), fit_logistic(features * units, labels, start, 0.3)
    torch.testing.assert_close(scaled * units, plain)


def test_labels_without_a_relation_to_the_features_stay_near_chance() -> None:
    """On 4,000 new examples; the loss of a guess is log 2."""
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(4_200, 10, generator=generator, dtype=torch.float64)
    labels = torch.randint(2, (4_200,), generator=generator)
    rows = fit_logistic(features[:200], labels[:200], torch.zeros(2, 10).double(), 0.3)
    logits = features[200:] @ rows.T
    assert 0.46 < float((logits.argmax(1) == labels[200:]).double().mean()) < 0.54
    assert float(torch.nn.functional.cross_entropy(logits, labels[200:])) < 0.75
