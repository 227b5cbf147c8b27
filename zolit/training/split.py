"""Splits models that are larger than one device: each process keeps some of the layers and passes its activations on.

Steps have forward passes alone, so activations are the only traffic. They are sent once for each boundary between the
layers of two processes. All processes end a forward with the same logits. Each process draws directions for its own
weights and updates these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import StrategyRegistry
from torch import Tensor, nn
from typing_extensions import override

from zolit.errors import require
from zolit.optim.blocks import Weight
from zolit.optim.collectives import Collectives
from zolit.optim.compatibility import check_split
from zolit.optim.modules.layers import find_layers
from zolit.optim.optimizer import ZerothOrder
from zolit.training.exchange import Exchange
from zolit.training.replicated import ReplicatedStrategy


class SplitStrategy(ReplicatedStrategy):
    """Keeps consecutive layers on each process, and all other modules (embedding, norm, output head) on every process.

    All processes see the same batches. Each process loads the whole model into CPU memory and moves its own layers to
    its device. Checkpoints hold the whole model. The final weights are bitwise equal to those of a run on one process.
    """

    @property
    @override
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Options of samplers: every process gets all examples."""
        return {"num_replicas": 1, "rank": 0}

    @override
    def model_to_device(self) -> None:
        """Removes the layers of other processes, and moves the other modules to the device."""
        module: Any = self.lightning_module
        self._rank_of_tensor = split_layers(module.model, dist.get_rank(), dist.get_world_size())
        # DDP's attribute for tensors that differ between processes.
        module._ddp_params_and_buffers_to_ignore = [f"model.{name}" for name in self._rank_of_tensor]
        super().model_to_device()

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Gathers the weights of all processes on the first process."""
        rank, found = dist.get_rank(), super().lightning_module_state_dict()
        for name, owner in self._rank_of_tensor.items():
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
        """Loads those weights of a whole model's checkpoint that this process holds.

        Raises:
            UserError: If the checkpoint lacks one of them.
        """
        assert self.lightning_module is not None
        present = {name for name, tensor in self.lightning_module.state_dict().items() if not tensor.is_meta}
        given = {name: tensor for name, tensor in checkpoint["state_dict"].items() if name in present}
        require(
            not strict or len(given) == len(present), "ckpt_path: the checkpoint does not have all weights of the model"
        )
        self.lightning_module.load_state_dict(given, strict=False)


class SplitCollectives(Collectives):
    """Collectives of processes that hold different layers and see the same examples.

    To the optimizer they are one process.

    Args:
        optimizer: The optimizer of this process's weights.

    Raises:
        UserError: If a stage needs or stores the values of all weights.
    """

    weights_are_split = True

    def __init__(self, optimizer: ZerothOrder) -> None:
        self._exchange = Exchange(optimizer.model)
        check_split(optimizer.selection, optimizer.perturbation, optimizer.prober, optimizer.update)
        _, layers = find_layers(optimizer.model)
        own = {id(parameter) for layer in layers for parameter in layer.parameters()}
        self._shared = {id(parameter) for parameter in optimizer.model.parameters()} - own

    @override
    def all_mean(self, own: Tensor) -> Tensor:
        """Returns the tensor of the first rank: all ranks compute the same loss; see ``Collectives.all_mean``."""
        return self.broadcast(own)

    @override
    def all_gather(self, own: Tensor) -> Tensor:
        """Returns the tensor of the first rank: all ranks have the same examples; see ``Collectives.all_gather``."""
        return self.broadcast(own)

    @override
    def broadcast(self, own: Tensor) -> Tensor:
        """Returns the tensor of the first rank; see ``Collectives.broadcast``."""
        return self._exchange.first(own)

    @override
    def owns(self, weight: Weight) -> bool:
        """Returns True for weights of layers, and on the first rank for all weights; see ``Collectives.owns``."""
        return dist.get_rank() == 0 or id(weight.parameter) not in self._shared

    @override
    def all_sum(self, own: Tensor) -> Tensor:
        """Sums by an all-reduce; see ``Collectives.all_sum``."""
        return self._exchange.total(own)


def split_layers(model: nn.Module, rank: int, size: int) -> dict[str, int]:
    """Removes the layers of other processes from a model, and receives their activations instead.

    Args:
        model: The whole model. A model that is split already stays as it is. Weights of other processes' layers keep
            their shapes and lose their values.
        rank: Index of this process.
        size: Number of processes.

    Returns:
        The process that holds each tensor of the layers, by name.

    Raises:
        UserError: If the model has no list of layers, or fewer layers than processes.
    """
    prefix, layers = find_layers(model)
    require(bool(layers), "trainer.strategy: split needs a model with a list of layers, and this model has none")
    require(len(layers) >= size, f"trainer.devices: {size} processes are too many for a model of {len(layers)} layers")
    rank_of_tensor: dict[str, int] = {}
    whole = not any(parameter.is_meta for parameter in model.parameters())
    for index, layer in enumerate(layers):
        owner = index * size // len(layers)
        is_last = index + 1 == len(layers) or (index + 1) * size // len(layers) != owner
        rank_of_tensor |= dict.fromkeys((f"{prefix}.{index}.{name}" for name in layer.state_dict()), owner)
        if not whole:
            continue
        if owner != rank:
            layer.to("meta")
            layer._apply = _unchanged_apply(layer)  # type: ignore[method-assign]  # not moved or cast
        layer.forward = _pipelined_forward(layer.forward, owner, owner == rank, is_last)
    return rank_of_tensor


def _unchanged_apply(layer: nn.Module) -> Callable[..., nn.Module]:
    """Returns a replacement of ``layer._apply`` that leaves the layer unchanged."""
    return lambda *_, **__: layer


def _pipelined_forward(forward: Callable[..., Any], owner: int, is_local: bool, is_last: bool) -> Callable[..., Tensor]:
    """Returns the replacement of a layer's forward.

    Args:
        forward: The layer's own forward.
        owner: The process that holds the layer.
        is_local: Whether this process holds the layer.
        is_last: Whether the layer is the last one of its process.
    """

    def forward_or_receive(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = hidden
        if is_local:
            result = forward(hidden, *args, **kwargs)
            alike = isinstance(result, Tensor) and (result.shape, result.dtype) == (hidden.shape, hidden.dtype)
            require(alike, "trainer.strategy: split needs layers whose output has the shape and dtype of their input")
        if is_last:
            result = result.contiguous() if is_local else torch.empty_like(hidden)
            dist.broadcast(result.view(torch.uint8), owner)
        return result

    return forward_or_receive


if "split" not in StrategyRegistry:
    StrategyRegistry.register(
        "split", SplitStrategy, description="some of the layers on each process, for models larger than one device"
    )
