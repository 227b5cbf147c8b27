"""The view of a weight in which each example computes with θ plus a separate direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from zolit.optim.probing.per_example.probe import PerExampleProbe, refuse
from zolit.optim.probing.per_example.products import PRODUCTS
from zolit.optim.probing.views import WeightView


class PerExampleWeight(WeightView):
    """Replaces a weight in its module. Example i computes with θ + c·uᵢ.

    Only the functions in ``PRODUCTS`` are supported. A model that uses a perturbed weight in another function is
    refused.
    """

    probe: PerExampleProbe

    @classmethod
    def compute(cls, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        """Computes a function in ``PRODUCTS`` with θ + c·uᵢ, example by example; see ``WeightView.compute``.

        Raises:
            UserError: If the function is not in ``PRODUCTS``.
        """
        product = PRODUCTS.get(func)
        if product is not None:
            return product(*args, **kwargs)
        view = next((value for value in (*args, *kwargs.values()) if isinstance(value, cls)), None)
        refuse(view, f"is used in {getattr(func, '__name__', func)}")
