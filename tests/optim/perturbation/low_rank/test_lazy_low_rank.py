"""LOZO's directions, one of whose sides stays for several steps."""

from __future__ import annotations

from tests.helpers.slope import Slope, assert_mean, estimates
from zolit.optim.perturbation.low_rank.lazy_low_rank import LazyLowRank


def test_lozo_estimates_the_projected_gradient() -> None:
    """E[ĝ] = G VVᵀ / r, given V."""
    model, law = Slope(7, 9), LazyLowRank(rank=2, refresh=10**6)
    found = estimates(law, model, 400)
    side = next(iter(law._sides.values())).double()
    assert_mean(found, model.gradient @ side.t() @ side / 2)
