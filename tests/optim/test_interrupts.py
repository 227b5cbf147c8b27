"""Ctrl-C at any line of a step leaves the weights as before the step or as after it, and nothing in the modules."""

from __future__ import annotations

import linecache
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import zolit.optim
from tests.helpers.signals import INT, restored_handlers
from tests.helpers.tiny import Layered, layered, regression, weights_of
from zolit import AGZO, FZOO, CurvZO, FirstOrder, HiZFO, MeZO, PerExample
from zolit.optim import SGD, LayerProjection, ZerothOrder

FOLDER = str(Path(zolit.optim.__file__).parent)
Make = Callable[[Layered], ZerothOrder]


def projecting(model: Layered) -> ZerothOrder:
    return ZerothOrder(model, lr=1e-2, eps=1e-2, update=LayerProjection(SGD(), every=1, steps=2, pattern="weight"))


METHODS: dict[str, Make] = {
    "in place": lambda model: MeZO(model, lr=1e-2, eps=1e-2, probing="in_place"),
    "streamed": lambda model: MeZO(model, lr=1e-2, eps=1e-2, momentum=0.5),
    "curvzo": lambda model: CurvZO(model, lr=1e-2, eps=1e-2),
    "dizo": projecting,
    "hi-zfo": lambda model: HiZFO(model, lr=1e-2, eps=1e-2, interval=1, probing="in_place"),
    "first order": lambda model: FirstOrder(model, lr=1e-2),
    "fused": lambda model: FirstOrder(model, lr=1e-2, rule="factored", keep_gradients=False, recompute=True),
    "per example": lambda model: PerExample(model, lr=1e-2, eps=1e-2),
    "agzo": lambda model: AGZO(model, lr=1e-2, eps=1e-2),
    "fzoo": lambda model: FZOO(model, lr=1e-2, eps=1e-2),
}


class InterruptAt:
    """Presses Ctrl-C as a line of ``zolit.optim`` is about to run; counts lines from the start of tracing."""

    def __init__(self, line: int | None) -> None:
        self.lines = 0
        self._at = line

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(FOLDER) or frame.f_code.co_filename.endswith("signals.py"):
            return None
        # Python traces the line of a `with` once more before it leaves the context; no signal is handled there.
        if event == "line" and "with " not in linecache.getline(frame.f_code.co_filename, frame.f_lineno):
            self.lines += 1
            if self.lines == self._at:
                signal.raise_signal(INT)
        return self


@pytest.fixture(autouse=True)
def clean_handlers() -> Iterator[None]:
    with restored_handlers():
        signal.signal(INT, signal.default_int_handler)
        yield
    sys.settrace(None)


def step(make: Make, dtype: torch.dtype, tracer: InterruptAt) -> tuple[Layered, dict[str, Any], bool]:
    """Makes a step, and a second one under the tracer."""
    model = layered(dtype)
    optimizer = make(model)
    losses = regression(model)
    optimizer.step(losses)
    before = weights_of(model)
    was_traced = sys.gettrace()
    try:
        sys.settrace(tracer)
        optimizer.step(losses)
    except KeyboardInterrupt:
        return model, before, True
    finally:
        sys.settrace(was_traced)
    return model, before, False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", METHODS)
def test_an_interrupt_at_any_line(name: str, dtype: torch.dtype) -> None:
    counter = InterruptAt(None)
    whole, _, _ = step(METHODS[name], dtype, counter)
    after = weights_of(whole)
    tolerance = 1e-6 if dtype == torch.float32 else 0.0
    interrupted = 0
    for line in range(1, counter.lines, max(1, counter.lines // 40)):
        model, before, was_raised = step(METHODS[name], dtype, InterruptAt(line))
        interrupted += was_raised
        found = weights_of(model)
        assert any(
            all(torch.allclose(found[key], expected[key], rtol=0.0, atol=tolerance) for key in found)
            for expected in (before, after)
        ), f"line {line}"
        for module in model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert not module.__dict__.keys() & module._parameters.keys()
        assert all(weight.requires_grad for weight in model.parameters())
    assert interrupted
