"""Counts, on a CPU, where stages would make the host wait for a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tests.helpers.stage_calls import StageCalls, stage_line

READING = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "unique_consecutive"}
READING |= {"repeat_interleave", "_linalg_check_errors", "multinomial", "bincount"}
"""Functions of aten whose result, or the length of it, the host needs."""

ON_A_CPU = {("nonzero", "probing/arithmetic.py")}
"""Functions that a file calls if the tensor is on a CPU, and not on a GPU."""

COPYING = ("cpu", "tolist", "numpy")
"""Methods that bring a tensor to the host."""


class HostWaits(StageCalls):
    """Lists the lines of stages in which the host would wait, each as often as it waits.

    A tensor would be on the GPU if it is a weight, a buffer or a part of the batch, or computed from such a tensor, or
    if the stage copies it to the CPU.

    Args:
        model: Its weights and buffers are on the GPU.
        batch: Tensors that are on the GPU.
    """

    def __init__(self, model: nn.Module, batch: Iterable[object] = ()) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        # Tensors are kept, so that no later one gets the memory of an earlier one.
        self._kept: dict[int, Tensor] = {}
        self._on_gpu([*model.parameters(), *model.buffers(), *batch])
        self._own = {name: getattr(Tensor, name) for name in COPYING}

    def __enter__(self) -> Self:
        for name in COPYING:
            setattr(Tensor, name, self._copying(name))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for name in COPYING:
            setattr(Tensor, name, self._own[name])

    def _copying(self, name: str) -> Any:
        def copy(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            line = stage_line()
            if line is not None and tensor.numel() and (name == "cpu" or self._is_on_gpu(tensor)):
                self.waits[line] += 1
            if name != "cpu":
                return self._own[name](tensor, *args, **kwargs)
            kept = tensor.clone()
            self._kept.pop(_memory(kept), None)  # a copy on the host
            return kept

        return copy

    def _on_gpu(self, values: object) -> None:
        self._kept.update({_memory(value): value for value in tree_leaves(values) if isinstance(value, Tensor)})

    def _is_on_gpu(self, tensor: Tensor) -> bool:
        return _memory(tensor) in self._kept

    def called(self, func: Any, args: Any, result: Any) -> None:
        """Keeps results of tensors that would be on the GPU."""
        if any(self._is_on_gpu(value) for value in tree_leaves(args) if isinstance(value, Tensor)):
            self._on_gpu(result)

    def see(self, func: Any, tensors: Sequence[Tensor], line: str) -> None:
        """Counts a function that the host waits for, and an index of bits, whose length the host needs."""
        name = func.overloadpacket.__name__
        bits = name in ("index", "index_put", "index_put_", "_unsafe_index") and any(
            tensor.dtype in (torch.bool, torch.uint8) for tensor in tensors[1:]
        )
        if (
            (name in READING or bits)
            and (name, line.partition(":")[0]) not in ON_A_CPU
            and any(map(self._is_on_gpu, tensors))
        ):
            self.waits[line] += 1


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
