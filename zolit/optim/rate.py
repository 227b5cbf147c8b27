"""The learning rate as an option: a number, or ``auto``."""

from __future__ import annotations

import math
from typing import Literal

from zolit.errors import UserError, require

LearningRate = float | Literal["auto"]
"""η, or ``auto``: ``choose_rate`` then measures it before the first step."""


def factor_of(lr: LearningRate) -> float:
    """Returns the number with which an optimizer and its schedule begin: η, or 1 until η is chosen.

    Raises:
        UserError: If η is negative or not finite, or a text other than ``auto``.
    """
    if lr == "auto":
        return 1.0
    if isinstance(lr, str):
        raise UserError(f"lr: the learning rate must be a number or auto, not {lr!r}")
    require(0.0 <= lr < math.inf, f"lr: the learning rate must be at least 0 and finite, not {lr}")
    return lr
