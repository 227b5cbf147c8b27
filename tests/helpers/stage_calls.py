"""Sees the functions of torch that stages call, apart from those that the model calls or would call."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WATCHERS = ("stage_calls.py", "host_waits.py")


class StageCalls(TorchDispatchMode):
    """Passes each call of a stage to ``see``, with the line of the stage that makes it.

    Attributes:
        models: Ends of the names of files whose calls count as those of the model.
    """

    models: tuple[str, ...] = ()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = (args, kwargs or {})
        self.called(func, given, result)
        line = stage_line(self.models)
        if line is not None:
            self.see(func, [value for value in tree_leaves(given) if isinstance(value, Tensor)], line)
        return result

    def called(self, func: Any, args: Any, result: Any) -> None:
        """Receives every call of a function of aten, its arguments and its result."""

    def see(self, func: Any, tensors: Sequence[Tensor], line: str) -> None:
        """Receives a function of aten, its tensor arguments, and the line of the stage."""
        raise NotImplementedError


def stage_line(models: tuple[str, ...] = ()) -> str | None:
    """Returns the file and line of the stage that calls torch; None if another part of the program calls."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if "/torch/" not in path and not path.endswith(WATCHERS):
            inside = "/zolit/optim/" in path and not path.endswith(models)
            return f"{path.rpartition('/zolit/optim/')[2]}:{frame.f_lineno}" if inside else None
        frame = frame.f_back  # type: ignore[assignment]  # the loop ends with the last frame
    return None


CAST = {
    *("conv1d", "conv2d", "conv3d", "conv_tbc", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("_convolution", "convolution", "prelu", "addmm", "addmv", "addr", "matmul", "einsum", "mm", "mv"),
    *("linalg_vecdot", "linear", "addbmm", "baddbmm", "bmm", "chain_matmul", "linalg_multi_dot"),
    *("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "scaled_dot_product_attention"),
}
"""What autocast casts to 16 bits on CUDA: AT_FORALL_LOWER_PRECISION_FP of ATen/autocast_mode.h."""


class CastCalls(StageCalls):
    """Lists the calls of stages that autocast casts to 16 bits on a GPU, or that get 16 bits from such a call.

    The model must be of float32. A CPU casts fewer functions. It has cast when the call is seen here.
    """

    # They replace its products, compute its layers again, or call its backward pass.
    models = ("products.py", "weight.py", "thin_gradients.py", "recompute.py", "base_point.py")

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._set = torch.set_autocast_enabled
        self._enabled = False

    def __enter__(self) -> Self:
        self._enabled = torch.is_autocast_enabled("cpu")
        torch.set_autocast_enabled = self._follow  # within a call, torch says that autocast is off
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        torch.set_autocast_enabled = self._set
        super().__exit__(*error)

    def _follow(self, device: str, enabled: bool) -> None:
        self._enabled = enabled
        self._set(device, enabled)

    def see(self, func: Any, tensors: Sequence[Tensor], line: str) -> None:
        """Records a function on the list, and a decomposition or product of 16 bits."""
        name = func.overloadpacket.__name__
        eligible = self._enabled and any(tensor.dtype == torch.float32 for tensor in tensors)
        would = eligible and name in CAST and func._overloadname != "out"
        listed = name in CAST or name == "dot" or name.startswith(("linalg_qr", "linalg_cholesky", "linalg_svd"))
        if would or (listed and any(tensor.dtype.itemsize == 2 for tensor in tensors)):
            self.found.add(f"{line} {name}")
