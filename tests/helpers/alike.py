"""Compares streamed probing with probing in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zolit import MeZO


def assert_probed_alike(make: Callable[[], nn.Module], inputs: Tensor, trainable: str = "", **options: Any) -> None:
    """Asserts that both kinds of probing measure the same losses in three steps."""
    runs = []
    for probing in ("streamed", "in_place"):
        torch.manual_seed(0)
        model = make().double()
        for name, parameter in model.named_parameters():
            parameter.requires_grad = trainable in name
        optimizer = MeZO(model, lr=0.0, eps=1e-1, probing=probing, **options)
        losses = []
        for _ in range(3):
            optimizer.step(lambda: model(inputs).square().mean())  # noqa: B023  # within this round
            losses += optimizer.last_step.losses
        runs.append(losses)
    assert runs[0] == pytest.approx(runs[1], rel=1e-10)
    assert runs[0][0] != runs[0][1]
