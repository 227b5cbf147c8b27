"""Counts the arithmetic of steps, in units of a plain forward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from typing_extensions import override

from zolit.optim.report import StepReport


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Counts two products: of queries with keys, and of scores with values."""
    scores = query[..., 0].numel() * key.shape[-2]
    return 2 * scores * (query.shape[-1] + value.shape[-1])


def _attention_backward(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any) -> int:
    """Counts the scores again, and the gradients of scores, queries, keys and values."""
    scores = query[..., 0].numel() * key.shape[-2]
    return 2 * scores * (3 * query.shape[-1] + 2 * value.shape[-1])


# torch has no formulas for attention on a CPU, nor for products that are added in place, such as outer products.
_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm],
    torch.ops.aten.baddbmm_: flop_registry[torch.ops.aten.baddbmm],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    **flop_registry,
}


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped there
    """A context that counts floating point operations by the formulas of torch's ``FlopCounterMode``.

    It counts matrix products, convolutions and attention, in forward and backward passes and in updates. It does not
    count functions of single elements, such as random numbers, norms and the addition of an update, nor decompositions
    of matrices.

    ``FlopCounterMode`` is not used itself. It replaces some operators (of SiLU's backward pass, for example) by others
    that round differently, and it does not count products that are added in place, nor attention on a CPU. Here results
    in the context are equal to the bit to those outside of it.

    Attributes:
        flops: The number of operations so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped there
        self.flops = 0

    supports_higher_order_operators = True

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = _FORMULAS.get(func.overloadpacket if isinstance(func, OpOverload) else func)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        return result


class StepArithmetic:
    """Measures the floating point operations of a step, divided by those of one plain forward of the same batch.

    Steps of a method may differ. The measured steps therefore give the ratio for each forward pass, and the number of
    forward passes of all steps gives the mean of a step.
    """

    def __init__(self) -> None:
        self._ratios = 0.0  # sum over the measured steps
        self._forwards = 0  # the same for their forward passes
        self._of_all = {"forwards": 0, "steps": 0}  # measured or not
        self._undo: list[Callable[[], object]] = []

    @property
    def is_measuring(self) -> bool:
        """Whether the next step is measured, or the current one."""
        return bool(self._undo)

    def begin(self, optimizer: Optimizer, forward: Callable[[], object]) -> None:
        """Measures a plain forward, and the next step of the optimizer. Called before the step.

        Args:
            optimizer: The optimizer.
            forward: Makes a plain forward of the batch of the step.
        """
        with FlopCounter() as counter:
            forward()
        self._plain = counter.flops
        self._counter = FlopCounter()
        counting = ExitStack()

        def enter(*_: Any) -> None:
            counting.enter_context(self._counter)

        def leave(*_: Any) -> None:
            counting.close()

        self._undo = [
            counting.close,
            optimizer.register_step_pre_hook(enter).remove,
            optimizer.register_step_post_hook(leave).remove,
        ]

    def end(self, report: StepReport) -> None:
        """Keeps the result, if the step was measured. Called after every step with its report."""
        self._of_all["forwards"] += report.forward_passes
        self._of_all["steps"] += 1
        if not self.is_measuring:
            return
        self.abandon()
        if self._plain:  # 0 if torch has no formula for any product of the model, as for some quantised layers
            self._ratios += self._counter.flops / self._plain
            self._forwards += report.forward_passes

    def abandon(self) -> None:
        """Stops counting. Called when a step has failed."""
        while self._undo:
            self._undo.pop()()

    @property
    def step_over_forward(self) -> float | None:
        """The mean over the steps of a run; None if no step with a forward pass was measured.

        Forwards outside of the steps, with which ``lr: auto`` chooses a rate, do not count.
        """
        if not self._forwards:
            return None
        return self._ratios / self._forwards * self._of_all["forwards"] / self._of_all["steps"]

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums over the steps that were measured so far."""
        return {"ratios": self._ratios, "forwards": self._forwards, "of_all": dict(self._of_all)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        self._ratios, self._forwards, self._of_all = state["ratios"], state["forwards"], dict(state["of_all"])
