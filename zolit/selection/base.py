"""The first room: which blocks move, and with what probability?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from zolit.blocks import Block
from zolit.choice import Choice
from zolit.closure import Look
from zolit.directions import Directions
from zolit.report import SelectionReport


class Selection(ABC):
    """Chooses the blocks of each step and learns from what the step measured.

    Attributes:
        masks: Whether it leaves single parameters of chosen blocks out.
    """

    masks: bool = False

    def bind(self, blocks: Sequence[Block], seed: int) -> None:
        """Takes the blocks that there are to choose from; called once, by the optimizer.

        Args:
            blocks: The n blocks.
            seed: Base seed of the run: a step's sample is a hash of it, the step and the block.
        """
        self._blocks = list(blocks)
        self._seed = seed
        self._names = tuple(block.name for block in blocks)
        self._sizes = torch.tensor([block.numel for block in blocks])

    def prepare(self, look: Look) -> None:
        """Sees, before a step, what the choice needs of the batch or of the model.

        Args:
            look: The loss at θ, and the model to watch meanwhile. What is learned from a rank's own batch must be made
                the same on all ranks, by ``look.ranks``. A look may raise: nothing may have been learned by then, and
                ``select`` must answer all the same, though nothing will move.
        """

    @abstractmethod
    def select(self, step: int) -> Choice:
        """Chooses the blocks of a step."""

    def observe(self, choice: Choice, directions: Directions, derivatives: Sequence[float]) -> None:
        """Learns from a step whose update was made.

        Args:
            choice: What ``select`` returned.
            directions: The step's directions.
            derivatives: Δ, the loss's derivative along each direction, shape (k,).
        """

    @abstractmethod
    def report(self, choice: Choice) -> SelectionReport:
        """Says what was chosen and what is known."""

    def scratch_bytes(self) -> int:
        """Returns the bytes held in proportion to the parameters."""
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs, by block name, in tensors and plain Python values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a state that ``state_dict`` returned."""
