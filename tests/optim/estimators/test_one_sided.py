"""Forward differences from the loss at θ."""

from __future__ import annotations

import pytest

from tests.helpers.quadratic import bent
from zolit import UserError
from zolit.optim.estimators.one_sided import OneSided


def test_forward_differences_see_the_curvature() -> None:
    estimate = OneSided(2).estimate(bent, 0.1)
    assert estimate.derivatives.tolist() == pytest.approx([3.3, -1.2])
    assert estimate.coefficients.tolist() == pytest.approx([1.65, -0.6])


def test_a_direction_is_needed() -> None:
    with pytest.raises(UserError, match="directions"):
        OneSided(0)
