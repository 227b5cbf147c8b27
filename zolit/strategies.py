"""Many processes, one model each, that agree through scalars alone."""

from __future__ import annotations

import torch
import torch.distributed as dist
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import Tensor
from typing_extensions import override


def mean_over_ranks(losses: Tensor) -> Tensor:
    """Returns the mean of each rank's losses, by one all-reduce in place.

    Args:
        losses: Shape (queries,), one number a query.
    """
    dist.all_reduce(losses)
    return losses.div_(dist.get_world_size())


def gathered_from_ranks(own: Tensor) -> Tensor:
    """Returns what all ranks have for their examples, by one all-gather.

    Args:
        own: Shape (..., batch), the same on every rank.

    Returns:
        Shape (..., ranks·batch), the ranks' in a row.
    """
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own.contiguous())
    return torch.cat(parts, dim=-1)


class ReplicatedStrategy(DDPStrategy):
    """DDP's launchers and process group without its wrapper.

    Replicas stay equal, to the bit, because their updates are: every rank draws the same directions and learns the
    same mean losses. Nothing but a step's losses travels, two numbers for two-point SPSA. DDP's own wrapper would
    allocate buckets for gradients that never come, as large as the trainable weights.
    """

    @override
    def configure_ddp(self) -> None:
        assert self.model is not None
        _sync_module_states(self.model)


if "replicated" not in StrategyRegistry:
    StrategyRegistry.register("replicated", ReplicatedStrategy, description="replicas that exchange losses alone")
