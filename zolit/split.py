"""Models larger than one device: every process keeps some of the layers, and hands on what comes out of them.

Forward passes are all there is, so that nothing but activations travels, and those once where one process' layers end
and another's begin. Every process ends a forward with the same logits, draws directions for the weights that it has,
and moves these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import StrategyRegistry
from torch import Tensor, nn
from typing_extensions import override

from zolit.blocks import Weight
from zolit.errors import require
from zolit.layers import stack_of
from zolit.mixing import check_split
from zolit.optimizer import ZerothOrder
from zolit.ranks import Ranks
from zolit.strategies import ReplicatedStrategy


class SplitStrategy(ReplicatedStrategy):
    """Each process keeps a run of consecutive layers, and all that is not a layer: embedding, norm, output head.

    All processes see the same batches. They begin with the whole model in the main memory of a CPU, and move to their
    device what is theirs. Checkpoints are of the whole model. Weights end to the bit as those of one process would.
    """

    @property
    @override
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": 1, "rank": 0}

    @override
    def model_to_device(self) -> None:
        module: Any = self.lightning_module
        self._owners = split(module.model, dist.get_rank(), dist.get_world_size())
        # DDP's name for what is not the same everywhere.
        module._ddp_params_and_buffers_to_ignore = [f"model.{name}" for name in self._owners]
        super().model_to_device()

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Collects the weights of all processes on the first."""
        rank, found = dist.get_rank(), super().lightning_module_state_dict()
        for name, owner in self._owners.items():
            own = found[f"model.{name}"]
            if owner == 0:
                continue
            whole = own if rank == owner else torch.empty_like(own, device=self.root_device)
            dist.broadcast(whole.flatten().view(torch.uint8), owner)
            if rank == 0:
                found[f"model.{name}"] = whole.cpu()
        return found

    @override
    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        assert self.lightning_module is not None
        there = {name for name, tensor in self.lightning_module.state_dict().items() if not tensor.is_meta}
        given = {name: tensor for name, tensor in checkpoint["state_dict"].items() if name in there}
        require(not strict or len(given) == len(there), "ckpt_path: the checkpoint lacks weights of the model")
        self.lightning_module.load_state_dict(given, strict=False)


class SplitRanks(Ranks):
    """Processes with a part of the layers each, which see the same examples: to the optimizer they are one.

    Args:
        optimizer: Whose weights they are.

    Raises:
        UserError: If a room looks at or keeps something of every weight.
    """

    split = True

    def __init__(self, optimizer: ZerothOrder) -> None:
        check_split(optimizer.selection, optimizer.perturbation, optimizer.prober, optimizer.update)
        _, layers = stack_of(optimizer.model)
        own = {id(parameter) for layer in layers for parameter in layer.parameters()}
        self._shared = {id(parameter) for parameter in optimizer.model.parameters()} - own

    @override
    def mean(self, own: Tensor) -> Tensor:
        return self.first(own)

    @override
    def gather(self, own: Tensor) -> Tensor:
        return self.first(own)

    @override
    def first(self, own: Tensor) -> Tensor:
        dist.broadcast(own, 0)
        return own

    @override
    def counts(self, weight: Weight) -> bool:
        return dist.get_rank() == 0 or id(weight.parameter) not in self._shared

    @override
    def total(self, own: Tensor) -> Tensor:
        dist.all_reduce(own)
        return own


def split(model: nn.Module, rank: int, size: int) -> dict[str, int]:
    """Takes the layers of other processes away, and has activations come from those.

    Args:
        model: The whole model, or one that was split in this way before, which stays as it is. Weights of other
            processes' layers keep their shapes, and lose their values.
        rank: Of this process.
        size: How many processes there are.

    Returns:
        Which process has each tensor of the layers, by name.

    Raises:
        UserError: If the model has no list of layers, or fewer layers than there are processes.
    """
    prefix, layers = stack_of(model)
    require(bool(layers), "trainer.strategy: the model has no list of layers that processes could share out")
    require(len(layers) >= size, f"trainer.devices: {size} processes cannot share out {len(layers)} layers")
    owners: dict[str, int] = {}
    whole = not any(parameter.is_meta for parameter in model.parameters())
    for index, layer in enumerate(layers):
        owner = index * size // len(layers)
        ends = index + 1 == len(layers) or (index + 1) * size // len(layers) != owner
        owners |= dict.fromkeys((f"{prefix}.{index}.{name}" for name in layer.state_dict()), owner)
        if not whole:
            continue
        if owner != rank:
            layer.to("meta")
            layer._apply = _left_alone(layer)  # type: ignore[method-assign]  # so that it is not moved or cast
        layer.forward = _handed_on(layer.forward, owner, owner == rank, ends)
    return owners


def _left_alone(layer: nn.Module) -> Callable[..., nn.Module]:
    return lambda *_, **__: layer


def _handed_on(forward: Callable[..., Any], owner: int, ours: bool, ends: bool) -> Callable[..., Tensor]:
    """Returns what takes the place of a layer's forward.

    Args:
        forward: The layer's own.
        owner: Which process has the layer.
        ours: Whether that is this one.
        ends: Whether the layer is the last of its process.
    """

    def forward_or_receive(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = hidden
        if ours:
            result = forward(hidden, *args, **kwargs)
            alike = isinstance(result, Tensor) and (result.shape, result.dtype) == (hidden.shape, hidden.dtype)
            require(alike, "trainer.strategy: `split` needs layers that return activations as they take them")
        if ends:
            result = result.contiguous() if ours else torch.empty_like(hidden)
            dist.broadcast(result.view(torch.uint8), owner)
        return result

    return forward_or_receive


if "split" not in StrategyRegistry:
    StrategyRegistry.register("split", SplitStrategy, description="a part of the layers on each process")
