"""Many processes, one model each, that agree through scalars alone."""

from __future__ import annotations

import torch
import torch.distributed as dist
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import Tensor
from typing_extensions import override

from zolit.ranks import Ranks


class ProcessRanks(Ranks):
    """The processes of torch.distributed's default group."""

    def __init__(self) -> None:
        self.size = dist.get_world_size()

    @override
    def mean(self, own: Tensor) -> Tensor:
        dist.all_reduce(own)
        return own.div_(self.size)

    @override
    def gather(self, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts, dim=-1)

    @override
    def first(self, own: Tensor) -> Tensor:
        dist.broadcast(own, 0)
        return own


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
