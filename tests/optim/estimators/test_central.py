"""Central differences, which measure the curvature too."""

from __future__ import annotations

import pytest

from tests.helpers.quadratic import bent
from zolit.optim.estimators.central import Central


def test_central_differences_measure_the_curvature() -> None:
    estimate = Central().estimate(bent, 0.1)
    assert estimate.coefficients.tolist() == pytest.approx([3.0])
    assert estimate.curvatures is not None
    assert estimate.curvatures.tolist() == pytest.approx([6.0])
