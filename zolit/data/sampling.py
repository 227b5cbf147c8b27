"""Decides which examples form a batch, on each rank and at each point of a run.

The batches of an epoch are a pure function of the lengths of all examples, the size of a global batch, the seed and the
epoch. A run is therefore resumed from two numbers: the epoch, and how many of its batches were served. A checkpoint has
the other values too, and a run with other ones is refused: the two numbers would be another place in the data.

Both samplers yield whole batches and are passed to a ``DataLoader`` as ``sampler=`` with ``batch_size=None``. Each is a
``DistributedSampler`` that shards by itself. Lightning does not replace such a sampler, for any value of
``Trainer(use_distributed_sampler=...)``, and it calls ``set_epoch`` at each epoch.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from zolit.errors import require
from zolit.models.batches import Batch

WINDOW = 50
"""Number of global batches that are sorted by length together: enough to save padding, few enough to stay random."""


def global_batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Returns the batches of one training epoch.

    Examples are shuffled. Within windows of :data:`WINDOW` batches they are sorted by length and cut into batches. Then
    the batches are shuffled. Examples that do not fill a batch are dropped before the sorting, so that no length is
    favored.

    Args:
        lengths: Tokens of each example.
        size: Examples per batch, over all ranks.
        seed: Seed of the run.
        epoch: Index of the epoch, from 0.

    Returns:
        ``len(lengths) // size`` lists of ``size`` indices.
    """
    # Python's own generator does not depend on global generators, nor on torch's default device and dtype.
    generator = random.Random(f"batches {seed} {epoch}")
    order = generator.sample(range(len(lengths)), len(lengths))
    whole = len(order) - len(order) % size
    batches = []
    for start in range(0, whole, WINDOW * size):
        window = sorted(order[start : min(start + WINDOW * size, whole)], key=lengths.__getitem__)
        batches += [window[i : i + size] for i in range(0, len(window), size)]
    generator.shuffle(batches)
    return batches


class GlobalBatchSampler(DistributedSampler[list[int]]):
    """Yields one rank's share of each training batch.

    A global batch has ``batch_size * world_size`` examples. Rank r takes each ``world_size``-th example, starting with
    the r-th. One process with ``world_size`` times the batch size therefore sees the same global batches.

    Args:
        lengths: Tokens of each example.
        batch_size: Examples per batch on each rank.
        rank: Index of this process.
        world_size: Number of processes that share the batches.
        seed: Seed of the shuffling.

    Attributes:
        start: Position where the next iteration begins: (epoch, number of its batches to skip).
        position: Position after the last served batch, as (epoch, batches); :class:`ResumableLoader` updates it.
        announced_epoch: The last epoch that Lightning set; None outside of Lightning.
        order: What decides the batches of each epoch, on all ranks together: the size of a global batch, the seed, the
            number of examples, and a checksum of their lengths.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, *, rank: int = 0, world_size: int = 1, seed: int = 0
    ) -> None:
        super().__init__(lengths, num_replicas=world_size, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.lengths = lengths
        self.global_batch_size = batch_size * world_size
        self.order = {
            "seed": seed,
            "examples": len(lengths),
            "lengths": zlib.crc32(" ".join(map(str, lengths)).encode()),
            "global_batch_size": self.global_batch_size,
        }
        self.start = self.position = (0, 0)
        self.announced_epoch: int | None = None

    def __len__(self) -> int:
        """Returns the number of batches in an epoch, the same on each rank."""
        return len(self.lengths) // self.global_batch_size

    def __iter__(self) -> Iterator[list[int]]:
        """Yields as many batches as an epoch has, from the start position on; continues in the next epoch if needed."""
        epoch, skipped = self.start
        for each, part in ((epoch, slice(skipped, None)), (epoch + 1, slice(skipped))):
            for batch in global_batches(self.lengths, self.global_batch_size, self.seed, each)[part]:
                yield batch[self.rank :: self.num_replicas]

    def set_epoch(self, epoch: int) -> None:
        """Starts the next iteration at the current position. Called by Lightning at the beginning of each epoch.

        Only a change of the number matters. Lightning's epochs can be shorter than the data (``limit_train_batches``),
        and after a resume from the end of an epoch with ``max_steps`` Lightning counts them wrongly.
        """
        if self.announced_epoch is not None and epoch != self.announced_epoch:
            self.start = self.position
        self.announced_epoch = epoch

    def check_order(self, saved: dict[str, int]) -> None:
        """Checks that the run of a checkpoint had the same batches. Called before a fit resumes.

        Args:
            saved: The ``order`` of that run's sampler, among other values.

        Raises:
            UserError: If the batches differ. The message names the option that decides it.
        """
        own, ranks = self.order, self.num_replicas
        require(
            saved.keys() >= own.keys(),
            "ckpt_path: the checkpoint does not say how its run ordered the training examples, so a fit cannot resume "
            "from it; start a new one from `zolit export`",
        )
        require(
            saved["seed"] == own["seed"],
            f"data.seed: the checkpoint's run ordered the training examples with seed {saved['seed']}, and this run "
            f"has {own['seed']}; set data.seed or seed_everything to {saved['seed']}",
        )
        require(
            saved["examples"] == own["examples"],
            f"data.train_file, data.train_examples: the checkpoint's run had {saved['examples']} training examples, "
            f"and this run has {own['examples']}; resume with the training data of that run",
        )
        require(
            saved["lengths"] == own["lengths"],
            "data.train_file: the training examples are not those of the checkpoint's run, their lengths in tokens "
            "differ; resume with the training data and the prompts of that run",
        )
        size = saved["global_batch_size"]
        require(
            size % ranks == 0,
            f"trainer.devices: a step of the checkpoint's run had {size} examples, and no data.batch_size gives this "
            f"number on {ranks} processes; set trainer.devices to a divisor of {size}",
        )
        require(
            size == self.global_batch_size,
            f"data.batch_size: a step of the checkpoint's run had {size} examples, and a step of this run has "
            f"{self.global_batch_size}; set data.batch_size to {size // ranks}, which is right for {ranks} "
            f"process{'es' * (ranks > 1)}",
        )


class OrderedBatchSampler(DistributedSampler[list[int]]):
    """Yields one rank's share of an evaluation. Over all ranks each example occurs once, always in the same batches.

    Batches are of nearly equal size. All ranks get the same number of batches, unless ``batch_size`` is 1 and the
    number of examples is not a multiple of the number of ranks. Each rank gets at least one, if there are as many
    examples as ranks.

    Args:
        lengths: Tokens of each example.
        batch_size: Largest number of examples per batch on each rank.
        by_length: Whether a batch has examples of similar length, which saves padding; else batches keep the order of
            the examples.
        rank: Index of this process.
        world_size: Number of processes that share the batches.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, *, by_length: bool = True, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(lengths, num_replicas=world_size, rank=rank, shuffle=False)  # type: ignore[arg-type]
        examples = len(lengths)
        order = sorted(range(examples), key=lengths.__getitem__) if by_length else list(range(examples))
        count = -(-examples // (batch_size * world_size))
        cuts = [i * examples // count for i in range(count + 1)]
        if examples < count * world_size:  # some rank would be left out of every batch
            cuts = [min(i * world_size, examples) for i in range(count + 1)]
        batches = [order[start:stop] for start, stop in pairwise(cuts)]
        if by_length:
            # Trainer(limit_val_batches=...) uses the first batches, which should not be those of the shortest prompts.
            random.Random("evaluation").shuffle(batches)
        self.batches = [shard for batch in batches if (shard := batch[rank::world_size])]

    def __len__(self) -> int:
        """Returns the number of batches on this rank."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class ResumableLoader(DataLoader[Batch]):
    """Loads training batches, and can restore its position.

    Its ``sampler`` must be a :class:`GlobalBatchSampler`. Lightning stores :meth:`state_dict` in each checkpoint and
    passes it to the loader of a resumed run, which continues with the next batch. The position counts served batches,
    not those that workers have prefetched.

    A loop over the loader runs to the end of the epoch. After a loop that was left early, the next loop starts again at
    the same position, unless Lightning announced an epoch in between. So ``next(iter(loader))`` returns a batch without
    side effects.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator, because Lightning creates the iterator before it announces the epoch: the start is read only
        # when the first batch is requested.
        sampler = self._sampler
        epoch, batches = sampler.start
        # Lightning's epoch may start in the middle of an epoch of the data, and Lightning counts its batches itself.
        left = len(sampler) - batches if sampler.announced_epoch is None else len(sampler)
        for batch in super().__iter__():
            left, batches = left - 1, batches + 1
            if batches == len(sampler):
                epoch, batches = epoch + 1, 0
            sampler.position = epoch, batches
            if left == 0:  # before the yield: Lightning does not resume the iterator after the last batch
                sampler.start = sampler.position
            yield batch
            if left == 0:
                return

    def state_dict(self) -> dict[str, int]:
        """Returns the position, and the order in which it is one.

        ``epoch`` and ``batches`` are the position: the batches of that epoch served so far. The other values are those
        of the sampler's ``order``.
        """
        epoch, batches = self._sampler.position
        return {"epoch": epoch, "batches": batches, **self._sampler.order}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Starts the next iteration at the position of a :meth:`state_dict`, of any number of ranks.

        Raises:
            UserError: If that loader had other batches.
        """
        self._sampler.check_order(state_dict)
        self._sampler.start = self._sampler.position = state_dict["epoch"], state_dict["batches"]

    @property
    def _sampler(self) -> GlobalBatchSampler:
        assert isinstance(self.sampler, GlobalBatchSampler)
        return self.sampler
