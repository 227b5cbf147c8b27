"""An estimator that asks for no loss."""

from __future__ import annotations

from torch import Tensor

from zolit.optim.estimators.no_probes import NoProbes


def test_no_loss_is_evaluated() -> None:
    def never(queries: Tensor) -> Tensor:
        raise AssertionError

    assert NoProbes().estimate(never, 0.1).coefficients.tolist() == [0.0]
