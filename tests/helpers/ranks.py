"""Runs ``zolit`` on one rank and records the run: a script, not a test.

The first argument is a folder; the others are arguments of ``zolit``. Each rank saves ``rank<r>.pt`` in the folder: its
weights, its losses, the number of elements of each reduction and gathering in its training steps, and the metrics of
a validation of the best weights.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from zolit.cli.lightning_cli import run
from zolit.training.module import ZerothOrderModule


def main(folder: Path) -> None:
    reduced: list[int] = []
    in_steps: list[int] = []
    losses: list[float] = []
    all_reduce, all_gather = dist.all_reduce, dist.all_gather
    training_step = ZerothOrderModule.training_step

    def counted_reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        reduced.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    def counted_gather(parts: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        reduced.append(tensor.numel())
        return all_gather(parts, tensor, *args, **kwargs)

    def recorded_step(self: ZerothOrderModule, batch: Any, batch_idx: int) -> Any:
        before = len(reduced)
        outputs = training_step(self, batch, batch_idx)
        in_steps.extend(reduced[before:])
        losses.append(outputs["zo"].loss)
        return outputs

    dist.all_reduce, dist.all_gather = counted_reduce, counted_gather
    ZerothOrderModule.training_step = recorded_step
    cli = run(sys.argv[2:])
    assert cli.model.model is not None
    state = {
        "weights": {name: tensor.clone() for name, tensor in cli.model.model.state_dict().items()},
        "losses": losses,
        "in_steps": in_steps,
        "strategy": type(cli.trainer.strategy).__name__,
    }
    # In the same process: the weights are loaded into the model that was trained.
    (metrics,) = cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path="best", verbose=False)
    state["metrics"] = metrics
    torch.save(state, folder / f"rank{cli.trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
