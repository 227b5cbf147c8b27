"""Runs every method on two ranks with different examples and compares the weights: a script, not a test.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=... python tests/helpers/ranks_battery.py

The first rank prints the name of every method whose weights are equal to the bit on both ranks after the steps.
"""

from __future__ import annotations

import sys
import warnings

import torch
import torch.distributed as dist

from tests.helpers.battery import METHODS, made
from tests.helpers.tiny import layered, regression
from zolit.training.replicated import ProcessCollectives

STEPS = 5


def main() -> None:
    """Runs all methods in both types."""
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    for name in METHODS:
        equal = True
        for dtype in (torch.float32, torch.bfloat16):
            model = layered(dtype)
            optimizer = made(name, model)
            optimizer.collectives = ProcessCollectives()
            closure = regression(model, examples=8, seed=dist.get_rank())
            before = torch.cat([weight.detach().flatten().float() for weight in model.parameters()])
            ids = {"examples": [8 * dist.get_rank() + i for i in range(8)]} if optimizer.per_example else {}
            for _ in range(STEPS):
                optimizer.step(closure, **ids)
            mine = torch.cat([weight.detach().flatten().float() for weight in model.parameters()])
            others = [torch.empty_like(mine) for _ in range(2)]
            dist.all_gather(others, mine)
            equal &= torch.equal(*others) and not torch.equal(mine, before)
        if dist.get_rank() == 0 and equal:
            sys.stdout.write(f"{name}\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
