"""Which examples make up which batch, on every rank, at every point of a run.

The batches of an epoch are a pure function of (seed, epoch), so a run is resumed from two numbers: the epoch, and how
many of its batches have been handed out.

Both samplers yield whole batches and are given to a ``DataLoader`` as ``sampler=`` with ``batch_size=None``. Each is a
``DistributedSampler`` because it shards by itself: Lightning takes such a sampler as it is, whatever
``Trainer(use_distributed_sampler=...)`` says, and announces every epoch to it by ``set_epoch``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from zolit.errors import UserError
from zolit.tasks.batch import Batch

WINDOW = 50
"""Global batches that are sorted by length together: long enough to save padding, short enough to stay random."""


def global_batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one training epoch.

    Examples are shuffled; within windows of :data:`WINDOW` batches they are sorted by length and cut; the batches are
    shuffled. What does not fill a batch is left out, chosen before the sorting so that no length is favored.

    Args:
        lengths: Tokens of every example.
        size: Examples per batch, all ranks together.
        seed: Seed of the run.
        epoch: Index of the epoch, from 0.

    Returns:
        Lists of ``size`` indices, ``len(lengths) // size`` of them.
    """
    # A generator of Python's own: independent of the global ones and of torch's default device and dtype.
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
    """One rank's share of every training batch, as a stream that is read an epoch's length at a time.

    A global batch has ``batch_size * world_size`` examples, of which rank r takes every ``world_size``-th from the
    r-th on. One process with ``world_size`` times the batch size therefore sees the same global batches.

    Args:
        lengths: Tokens of every example.
        batch_size: Examples per batch on each rank.
        rank: Index of this process.
        world_size: How many processes share the batches.
        seed: Seed of the shuffling.

    Attributes:
        start: Where the next iteration begins: (epoch, batches of it to leave out).
        reached: How far batches have been handed out, in the same terms; kept by :class:`ResumableLoader`.
        announced: The epoch that Lightning announced last; None outside of Lightning.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, *, rank: int = 0, world_size: int = 1, seed: int = 0
    ) -> None:
        super().__init__(lengths, num_replicas=world_size, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.lengths = lengths
        self.global_batch_size = batch_size * world_size
        self.start = self.reached = (0, 0)
        self.announced: int | None = None

    def __len__(self) -> int:
        """Batches in an epoch, on every rank."""
        return len(self.lengths) // self.global_batch_size

    def __iter__(self) -> Iterator[list[int]]:
        """As many batches as an epoch has: from the start on, and as far into the next epoch as was left out."""
        epoch, skipped = self.start
        for each, part in ((epoch, slice(skipped, None)), (epoch + 1, slice(skipped))):
            for batch in global_batches(self.lengths, self.global_batch_size, self.seed, each)[part]:
                yield batch[self.rank :: self.num_replicas]

    def set_epoch(self, epoch: int) -> None:
        """Lets the next iteration begin where the last one was left, when Lightning announces another epoch.

        Only the change matters, not the number. Lightning's epochs can be shorter than the data
        (``limit_train_batches``), and after a resume from the end of an epoch with ``max_steps`` it miscounts them.
        """
        if self.announced is not None and epoch != self.announced:
            self.start = self.reached
        self.announced = epoch


class OrderedBatchSampler(DistributedSampler[list[int]]):
    """One rank's share of an evaluation: over all ranks every example comes exactly once, always in the same batches.

    The batches are cut as evenly as possible. All ranks get equally many of them, unless ``batch_size`` is 1 and the
    examples do not divide among the ranks.

    Args:
        lengths: Tokens of every example.
        batch_size: Examples per batch on each rank, at most.
        by_length: Whether batches are made of examples of similar length, which saves padding; else they follow the
            order of the examples.
        rank: Index of this process.
        world_size: How many processes share the batches.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, *, by_length: bool = True, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(lengths, num_replicas=world_size, rank=rank, shuffle=False)  # type: ignore[arg-type]
        examples = len(lengths)
        order = sorted(range(examples), key=lengths.__getitem__) if by_length else list(range(examples))
        count = -(-examples // (batch_size * world_size))
        batches = [order[i * examples // count : (i + 1) * examples // count] for i in range(count)]
        if by_length:
            # Trainer(limit_val_batches=...) takes the first batches: they should not be those of the shortest prompts.
            random.Random("evaluation").shuffle(batches)
        self.batches = [shard for batch in batches if (shard := batch[rank::world_size])]

    def __len__(self) -> int:
        """Batches on this rank."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class ResumableLoader(DataLoader[Batch]):
    """A loader of training batches that knows its place and can be put there again.

    Its ``sampler`` must be a :class:`GlobalBatchSampler`. Lightning stores :meth:`state_dict` in every checkpoint and
    gives it back to the loader of a resumed run, which then goes on with exactly the next batch. Counted are the
    batches that were handed out, not those that workers fetched ahead.

    A loop over the loader goes to the end of the epoch. One that was broken off begins anew with the next, unless
    Lightning announced an epoch in between; so ``next(iter(loader))`` may be used to look at a batch.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator, because Lightning asks for the iterator before it announces the epoch: nothing is fixed until
        # the first batch is wanted.
        sampler = self._sampler
        epoch, batches = sampler.start
        # Lightning's epoch may begin amid one of the data, and it counts for itself how many batches it wants.
        left = len(sampler) - batches if sampler.announced is None else len(sampler)
        for batch in super().__iter__():
            left, batches = left - 1, batches + 1
            if batches == len(sampler):
                epoch, batches = epoch + 1, 0
            sampler.reached = epoch, batches
            if left == 0:  # before the yield: Lightning does not come back after an epoch's last batch
                sampler.start = sampler.reached
            yield batch
            if left == 0:
                return

    def state_dict(self) -> dict[str, int]:
        """Where the loader is: ``{"epoch": ..., "batches": ...}``, the batches of that epoch handed out so far."""
        epoch, batches = self._sampler.reached
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes the next iteration begin where a :meth:`state_dict` was taken.

        Raises:
            UserError: If an epoch has fewer batches now than had been handed out then.
        """
        place = state_dict["epoch"], state_dict["batches"]
        if place[1] >= len(self._sampler):
            raise UserError(
                f"the checkpoint was written after {place[1]} batches of an epoch, but an epoch has only"
                f" {len(self._sampler)} now: resume with the training data and batch size of the original run"
            )
        self._sampler.start = self._sampler.reached = place

    @property
    def _sampler(self) -> GlobalBatchSampler:
        assert isinstance(self.sampler, GlobalBatchSampler)
        return self.sampler
