"""Runs ``zolit`` with the arguments after a folder, and writes down what each rank saw: a script, not a test.

Each rank saves ``rank<r>.pt`` in the folder: its weights, its losses, the numels of what its training steps give to
reductions and gatherings, and how the best weights validate.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from zolit.cli import run
from zolit.module import ZerothOrderModule


def main(folder: Path) -> None:
    reduced: list[int] = []
    in_steps: list[int] = []
    losses: list[float] = []
    all_reduce, all_gather = dist.all_reduce, dist.all_gather
    training_step = ZerothOrderModule.training_step

    def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        reduced.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    def counted_too(parts: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        reduced.append(tensor.numel())
        return all_gather(parts, tensor, *args, **kwargs)

    def watched(self: ZerothOrderModule, batch: Any, batch_idx: int) -> Any:
        before = len(reduced)
        outputs = training_step(self, batch, batch_idx)
        in_steps.extend(reduced[before:])
        losses.append(outputs["zo"].loss)
        return outputs

    dist.all_reduce, dist.all_gather = counted, counted_too
    ZerothOrderModule.training_step = watched
    cli = run(sys.argv[2:])
    assert cli.model.model is not None
    state = {
        "weights": {name: tensor.clone() for name, tensor in cli.model.model.state_dict().items()},
        "losses": losses,
        "in_steps": in_steps,
        "strategy": type(cli.trainer.strategy).__name__,
    }
    # Once more in the same process, with weights that are loaded into what is there.
    (looked,) = cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path="best", verbose=False)
    state["looked"] = looked
    torch.save(state, folder / f"rank{cli.trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
