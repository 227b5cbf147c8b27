"""Runs every method on two ranks with different examples and compares the weights: a script, not a test.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=... python tests/helpers/ranks_battery.py

The first rank prints the name of every method whose weights are equal to the bit on both ranks after the steps. In
float32 the second rank has fewer examples. Per-example methods must then end as one process with all examples. So must
backpropagation with equally many examples, whose ranks may also use other layers of the model in each step. If the
second rank has no example, steps are skipped or refused on both.

The default group has a backend for CUDA tensors alone, as with NCCL: it refuses every tensor of this CPU. Only what
``Exchange`` moved to the device of the weights goes to a group that takes it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.helpers.battery import METHODS, made, model_for
from tests.helpers.tiny import layered, regression
from zolit import UserError
from zolit.training.exchange import Exchange
from zolit.training.replicated import ProcessCollectives

STEPS = 5
EQUAL, UNEQUAL, EMPTY = (8, 8), (8, 5), (8, 0)


def act_as_on_a_gpu() -> None:
    """Makes the two groups, and sends each tensor to the one that takes its device."""
    dist.init_process_group("cuda:gloo")
    on_device = dist.new_group(backend="gloo")
    move = Exchange._on_device

    def remembered(self: Exchange, own: Tensor) -> Tensor:
        sent = move(self, own).view_as(own)  # another object: the argument itself counts as a tensor of the CPU
        sent.on_device = True  # type: ignore[attr-defined]  # a mark of this script
        return sent

    def routed(collective: Callable[..., Any]) -> Callable[..., Any]:
        def send(*args: Any, **options: Any) -> Any:
            if any(getattr(argument, "on_device", False) for argument in args):
                options["group"] = on_device
            return collective(*args, **options)

        return send

    Exchange._on_device = remembered  # type: ignore[method-assign]  # stands for the copy to a GPU
    for name in ("all_reduce", "all_gather", "broadcast"):
        setattr(dist, name, routed(getattr(dist, name)))
    with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
        dist.broadcast(torch.zeros(1), 0)


def run(name: str, dtype: torch.dtype, sizes: tuple[int, int], ranks: list[int], alone: bool) -> Tensor:
    """Makes a few steps on the examples of some ranks, as one of two processes or alone; returns how weights moved."""
    model = model_for(name, dtype)
    optimizer = made(name, model)
    if not alone:
        optimizer.collectives = ProcessCollectives(model)
    closures = [regression(model, examples=sizes[rank], seed=rank) for rank in ranks]
    ids = [8 * rank + i for rank in ranks for i in range(sizes[rank])]
    before = torch.cat([weight.detach().flatten().float() for weight in model.parameters()])
    for _ in range(STEPS):
        examples = {"examples": ids} if optimizer.per_example else {}
        optimizer.step(lambda: torch.cat([closure() for closure in closures]), **examples)
    return torch.cat([weight.detach().flatten().float() for weight in model.parameters()]) - before


def run_routed(name: str, rank: int) -> Tensor:
    """Makes a few steps in which each rank uses another layer of the model; returns how weights moved."""
    model = layered()
    optimizer = made(name, model)
    optimizer.collectives = ProcessCollectives(model)
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(rank))
    before = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    for step in range(STEPS):
        layer = model.layers[1 if name.endswith("last layer") else (rank + step) % 2]
        optimizer.step(lambda layer=layer: model.head(model.norm(layer(model.embed(inputs)))).square().mean(1))
    return torch.cat([weight.detach().flatten() for weight in model.parameters()]) - before


def main() -> None:
    """Runs all methods in both types."""
    warnings.simplefilter("ignore")
    act_as_on_a_gpu()
    exchange, rank = Exchange(layered()), dist.get_rank()
    for name, (method, _) in METHODS.items():
        good = True
        for dtype, sizes in ((torch.float32, UNEQUAL), (torch.bfloat16, EQUAL)):
            moved = run(name, dtype, sizes, [rank], alone=False)
            first, second = exchange.joined(moved.unsqueeze(1)).unbind(1)
            good &= torch.equal(first, second) and bool(moved.any())
            if method == "PerExample" and dtype == torch.float32:
                whole = run(name, dtype, sizes, [0, 1], alone=True)
                good &= torch.allclose(moved, whole, rtol=1e-3, atol=1e-5)
        if method == "FirstOrder":  # as one process with all examples; and each rank with other layers
            moved, whole = (run(name, torch.float32, EQUAL, of, len(of) > 1) for of in ([rank], [0, 1]))
            good &= torch.allclose(moved, whole, rtol=1e-3, atol=1e-4)
            first, second = exchange.joined(run_routed(name, rank).unsqueeze(1)).unbind(1)
            good &= torch.equal(first, second) and bool(first.any())
        if name == "direct feedback, identity":  # with equally many examples, as one process with all of them
            moved = run(name, torch.float32, EQUAL, [rank], alone=False)
            good &= torch.allclose(moved, run(name, torch.float32, EQUAL, [0, 1], alone=True), rtol=1e-3, atol=1e-5)
        if method == "PerExample":  # a rank without examples: all ranks say so, and none waits
            with pytest.raises(UserError, match="step: process 1 of 2 has no examples"):
                run(name, dtype, EMPTY, [rank], alone=False)
        else:
            good &= not run(name, torch.float32, EMPTY, [rank], alone=False).any()
        if rank == 0 and good:
            sys.stdout.write(f"{name}\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
