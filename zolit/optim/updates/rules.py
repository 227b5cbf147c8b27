"""The rules by which a weight can move along its gradient, by name."""

from __future__ import annotations

from typing import Literal, get_args

from zolit.errors import require_one_of
from zolit.optim.updates.adam import Adam
from zolit.optim.updates.factored import Factored
from zolit.optim.updates.rounding import Rounding
from zolit.optim.updates.rule import Rule
from zolit.optim.updates.sgd import SGD

RuleName = Literal["adam", "sgd", "factored"]
"""How a weight moves by its gradient:

- ``adam``: AdamW, with two averages for each element;
- ``sgd``: along the gradient, without state;
- ``factored``: AdaLomo (arXiv 2310.10195), with one average for each row and each column.
"""


def rule_of(name: RuleName, betas: tuple[float, float], weight_decay: float, rounding: Rounding) -> Rule:
    """Makes a rule.

    Args:
        name: The rule.
        betas: Weights of the old averages in Adam; other rules ignore them.
        weight_decay: λ, the weight decay.
        rounding: How to round the result for weights of 16 bits.

    Raises:
        UserError: If there is no such rule.
    """
    require_one_of("rule", name, get_args(RuleName))
    if name == "adam":
        return Adam(betas, weight_decay=weight_decay, rounding=rounding)
    if name == "sgd":
        return SGD(weight_decay=weight_decay, rounding=rounding)
    return Factored(weight_decay, rounding)
