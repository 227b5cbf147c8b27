"""The messages that processes exchange during a step. Each is sent from the device of the weights."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad

from zolit.errors import UserError


class Exchange:
    """Sends tensors between all processes of torch.distributed's default group.

    A group has a backend for some types of device only: NCCL refuses a tensor of the CPU. A tensor is therefore moved
    to the device of the weights before it is sent, and the result is moved back. No other code sends the tensors of a
    step.

    Args:
        model: The model that is tuned. Its weights may move to another device later.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @property
    def device(self) -> torch.device:
        """The device of the weights that this process holds."""
        return next(parameter.device for parameter in self._model.parameters() if not parameter.is_meta)

    def _on_device(self, own: Tensor) -> Tensor:
        return own.to(self.device).contiguous()

    def total(self, own: Tensor) -> Tensor:
        """Returns the sum over all processes. The tensor has the same shape on all, and may be overwritten."""
        sent = self._on_device(own)
        dist.all_reduce(sent)
        return sent.to(own.device)

    def first(self, own: Tensor) -> Tensor:
        """Returns the tensor of the first process. The tensor has the same shape on all, and may be overwritten."""
        sent = self._on_device(own)
        dist.broadcast(sent, 0)
        return sent.to(own.device)

    def joined(self, own: Tensor) -> Tensor:
        """Concatenates the tensors of all processes along the last dimension, process after process.

        The last dimension may differ between processes; all others are the same. The host waits for the device, because
        the lengths are sent first.

        Raises:
            UserError: If the last dimension of a process is empty. It is raised on all processes, so that none waits.
        """
        lengths = self._gathered(self._on_device(torch.tensor([own.shape[-1]])))
        counts = torch.cat(lengths).tolist()
        if 0 in counts:
            raise UserError(
                f"step: process {counts.index(0)} of {len(counts)} has no examples; give each process at least one"
            )
        parts = self._gathered(self._on_device(pad(own, (0, max(counts) - own.shape[-1]))))
        whole = torch.cat([part[..., :count] for part, count in zip(parts, counts, strict=True)], dim=-1)
        return whole.to(own.device)

    def _gathered(self, sent: Tensor) -> list[Tensor]:
        """Returns the tensors of all processes, each of the shape of ``sent``."""
        parts = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, sent)
        return parts
