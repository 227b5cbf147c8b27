"""Weights move within the span of the perturbations that were probed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.battery import METHODS, OFF_SPAN, made
from tests.helpers.tiny import layered, regression, seen_by, weights_of

# test_per_example.py and test_reference.py test the other forms.
ALONG = [
    name
    for name, (method, options) in METHODS.items()
    if not options.get("momentum") and options.get("blocks") != "parameter" and name not in OFF_SPAN
    if method != "PerExample"
]


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast in the closure"])
@pytest.mark.parametrize("name", ALONG)
def test_weights_move_along_what_was_probed(name: str, autocast: bool) -> None:
    """Block by block, the movement lies in the span of the perturbations that modules computed with; on every step."""
    model = layered(torch.float64)
    optimizer = made(name, model, eps=0.01)
    closure = regression(model)
    probed: list[dict[str, Tensor]] = []

    def seeing() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            probed.append(seen_by(model))
            return closure()

    for _ in range(6):
        probed.clear()
        before = weights_of(model)
        optimizer.step(seeing)
        for key, theta in before.items():
            moved = (model.get_parameter(key).detach() - theta).flatten().cpu()
            ways = torch.stack([(seen[key] - theta).flatten() for seen in probed]).cpu()
            ways = ways[ways.norm(dim=1) > 0]
            if not moved.any():
                continue
            assert len(ways), f"{key} moved, and no probe has moved it"
            rest = moved - ways.t() @ torch.linalg.lstsq(ways.t(), moved.unsqueeze(1), driver="gelsd").solution[:, 0]
            assert float(rest.norm()) < 1e-5 * float(moved.norm()), key
