"""Checks that the state of an optimizer is loaded into the same method over the same blocks."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from zolit.errors import UserError, require
from zolit.optim.blocks import Block
from zolit.optim.stage import Stage

_FREE = ("prober",)
"""Stages whose choice does not change what the others have learned."""


def signature(method: str, stages: Mapping[str, Stage], blocks: Sequence[Block]) -> dict[str, str]:
    """Returns what must be equal between two runs for one to go on with the state of the other.

    Args:
        method: Name of the method's class.
        stages: The stages, by name.
        blocks: The partition of the weights.
    """
    names = {stage: value.signature for stage, value in stages.items() if stage not in _FREE}
    momentum = "on" if getattr(stages["update"], "momentum", 0.0) else "off"
    partition = zlib.crc32("\n".join(block.name for block in blocks).encode())
    return {"method": method, **names, "momentum": momentum, "blocks": f"{len(blocks)} ({partition:08x})"}


def check_same(state: Mapping[str, Any], own: Mapping[str, str]) -> None:
    """Checks the signature in a state. Called before anything of the state is loaded.

    Args:
        state: The state of the optimizer.
        own: The signature of this run.

    Raises:
        UserError: If the state is of no method of zolit, or the method, a stage, the blocks or the use of momentum
            differ.
    """
    found = state.get("zo", {}).get("signature")
    if not isinstance(found, Mapping):
        raise UserError(
            "model.optimizer: the checkpoint has no state of a method of zolit, so a fit cannot go on from it"
        )
    differing = [name for name, value in own.items() if found.get(name) != value]
    theirs, ours = (", ".join(f"{name} {side.get(name)}" for name in differing) for side in (found, own))
    require(
        not differing,
        f"model.optimizer: the checkpoint has {theirs}, and this run has {ours}; go on with the options of the "
        "checkpoint, or begin a new run",
    )
