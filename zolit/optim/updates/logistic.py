"""Multinomial logistic regression with an L2 penalty."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def scales_of(features: Tensor) -> Tensor:
    """Returns s, by which each feature is divided: its standard deviation times √d.

    The origin counts as one more example, so that a single example has a scale too. A feature that is 0 everywhere has
    the scale 1.

    Args:
        features: Shape (n, d).

    Returns:
        Shape (d,).
    """
    count, width = features.shape
    mean = features.mean(0)
    squares = (features - mean).square().sum(0) + mean.square() * count / (count + 1)
    scales = (squares / (count + 1)).sqrt() * width**0.5
    return torch.where(scales > 0.0, scales, 1.0)


def fit_logistic(features: Tensor, classes: Tensor, start: Tensor, l2: float) -> Tensor:
    """Returns the rows P that minimize Σᵢ CE(P xᵢ, yᵢ) + λ/2 Σ_{cj} (P_cj s_j)². Called once a step.

    The penalty on P·s is that of a regression on the features x/s, see ``scales_of``. It is not divided by n: it is the
    negative logarithm of a normal prior with the variance 1/λ, so that its weight falls as examples come. L-BFGS
    (Liu and Nocedal 1989) stops where no component of the gradient, divided by n, is above 1e-5.

    Args:
        features: x, shape (n, d), float64.
        classes: y, shape (n,), int64.
        start: Rows from which the search begins, shape (classes, d), float64. The minimum does not depend on them.
        l2: λ.

    Returns:
        P, shape (classes, d), float64.
    """
    scales = scales_of(features)
    inputs, rows = features / scales, start * scales
    targets = functional.one_hot(classes, len(start)).to(inputs)
    search = torch.optim.LBFGS(
        [rows],
        max_iter=500,
        history_size=20,
        tolerance_grad=1e-5,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        logits = inputs @ rows.T
        rows.grad = ((logits.softmax(1) - targets).T @ inputs + l2 * rows) / len(inputs)
        losses = functional.cross_entropy(logits, classes, reduction="sum")
        return (losses + l2 / 2 * rows.square().sum()) / len(inputs)

    search.step(objective)  # type: ignore[no-untyped-call]  # untyped there
    return rows.detach() / scales
