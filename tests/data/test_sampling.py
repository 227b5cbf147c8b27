from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from zolit.data.encoded import EncodedPrompts
from zolit.data.sampling import WINDOW, GlobalBatchSampler, OrderedBatchSampler, ResumableLoader, global_batches
from zolit.errors import UserError

LENGTHS = [random.Random(i).randint(1, 40) for i in range(1003)]


def loader(
    workers: int = 0, size: int = 4, examples: int = 30, first: int = 0, rank: int = 0, world: int = 1, seed: int = 0
) -> ResumableLoader:
    """The label of each example is its index."""
    prompts = [torch.ones(length, dtype=torch.int64) for length in LENGTHS[first : first + examples]]
    data = EncodedPrompts(prompts, torch.arange(examples), torch.tensor([1, 2]), 0)
    sampler = GlobalBatchSampler(data.lengths, size, rank=rank, world_size=world, seed=seed)
    context = "fork" if workers else None
    return ResumableLoader(data, sampler=sampler, batch_size=None, num_workers=workers, multiprocessing_context=context)


def indices(batches: Iterator) -> list[list[int]]:
    return [batch.labels.tolist() for batch in batches]


def place(of: ResumableLoader) -> tuple[int, int]:
    state = of.state_dict()
    return state["epoch"], state["batches"]


def test_an_epoch_is_a_function_of_seed_and_epoch() -> None:
    random.seed(1)
    first = global_batches(LENGTHS, 8, seed=3, epoch=2)
    random.seed(2)
    assert global_batches(LENGTHS, 8, seed=3, epoch=2) == first
    others = [global_batches(LENGTHS, 8, seed, epoch) for seed, epoch in ((2, 3), (3, 1), (4, 2), (3, 3))]
    assert all(other != first for other in others)


def test_batches_are_whole_and_disjoint() -> None:
    batches = global_batches(LENGTHS, 8, seed=0, epoch=0)
    assert [len(batch) for batch in batches] == [8] * (1003 // 8)
    assert len({i for batch in batches for i in batch}) == 8 * (1003 // 8)


def test_dropped_examples_do_not_depend_on_length() -> None:
    lengths = list(range(15))  # two batches of 8 would need 16: 7 examples are dropped, different ones in each epoch
    left_out = [set(lengths) - set(global_batches(lengths, 8, 0, epoch)[0]) for epoch in range(200)]
    mean = sum(sum(out) for out in left_out) / (200 * 7)
    assert mean == pytest.approx(7, abs=0.5)


def test_batches_save_padding_but_mix_lengths_over_time() -> None:
    batches = global_batches(LENGTHS, 8, seed=0, epoch=0)
    spread = [max(LENGTHS[i] for i in batch) - min(LENGTHS[i] for i in batch) for batch in batches]
    assert sum(spread) / len(spread) < 4  # of 39; by chance it would be about 31
    means = [sum(LENGTHS[i] for i in batch) / 8 for batch in batches[:WINDOW]]
    assert means != sorted(means)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_interleave_to_the_global_batches_of_one(world: int) -> None:
    one = list(GlobalBatchSampler(LENGTHS, 4 * world, seed=5))
    ranks = [list(GlobalBatchSampler(LENGTHS, 4, rank=r, world_size=world, seed=5)) for r in range(world)]
    assert {len(batches) for batches in ranks} == {len(one)}
    for batch, *shards in zip(one, *ranks, strict=True):
        assert {len(shard) for shard in shards} == {4}
        assert [i for group in zip(*shards, strict=True) for i in group] == batch


@pytest.mark.parametrize("by_length", [True, False])
@pytest.mark.parametrize(("world", "examples"), [(1, 21), (2, 21), (3, 21), (3, 4), (2, 9), (2, 8)])
def test_evaluation_has_each_example_once(world: int, examples: int, by_length: bool) -> None:
    options = {"by_length": by_length, "world_size": world}
    ranks = [list(OrderedBatchSampler(LENGTHS[:examples], 4, rank=r, **options)) for r in range(world)]
    assert sorted(i for batches in ranks for batch in batches for i in batch) == list(range(examples))
    assert max(len(batch) for batches in ranks for batch in batches) <= 4
    assert len({len(batches) for batches in ranks}) == 1  # a rank with fewer batches would not join a collective
    assert ranks == [list(OrderedBatchSampler(LENGTHS[:examples], 4, rank=r, **options)) for r in range(world)]


@pytest.mark.parametrize(("examples", "world"), [(4, 3), (5, 4), (7, 4), (3, 2), (2, 2), (9, 3)])
@pytest.mark.parametrize("by_length", [True, False])
def test_no_rank_is_left_out_of_an_evaluation_in_batches_of_one(examples: int, world: int, by_length: bool) -> None:
    """A rank without a batch would log nothing, and the others would wait for its numbers."""
    options: dict[str, Any] = {"by_length": by_length, "world_size": world}
    ranks = [list(OrderedBatchSampler(LENGTHS[:examples], 1, rank=r, **options)) for r in range(world)]
    assert sorted(i for batches in ranks for batch in batches for i in batch) == list(range(examples))
    assert all(len(batch) == 1 for batches in ranks for batch in batches)
    assert all(batches and len(batches) <= -(-examples // world) for batches in ranks)


def test_evaluation_batches_are_of_similar_length_but_not_in_its_order() -> None:
    batches = list(OrderedBatchSampler(LENGTHS, 32))
    spread = [max(LENGTHS[i] for i in batch) - min(LENGTHS[i] for i in batch) for batch in batches]
    assert max(spread) < 6
    assert min(sum(LENGTHS[i] for i in batch) for batch in batches) < sum(LENGTHS[i] for i in batches[0])
    assert [i for batch in OrderedBatchSampler(LENGTHS, 32, by_length=False) for i in batch] == list(range(1003))


def test_lightning_takes_the_samplers_as_they_are() -> None:
    for sampler in (GlobalBatchSampler(LENGTHS, 4), OrderedBatchSampler(LENGTHS, 4)):
        assert isinstance(sampler, DistributedSampler)
        assert DataLoader(LENGTHS, sampler=sampler, batch_size=None).sampler is sampler


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_continues_with_the_next_batch(workers: int) -> None:
    whole = loader()
    expected = indices(whole) + indices(whole)  # two epochs of 7
    assert expected[:7] != expected[7:]
    assert place(whole) == (2, 0)

    cut = loader(workers)
    assert indices(islice(cut, 3)) == expected[:3]
    state = cut.state_dict()
    assert place(cut) == (0, 3)
    resumed = loader(workers)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert indices(resumed) == expected[3:7]
    assert indices(resumed) == expected[7:]


def test_the_end_of_an_epoch_is_known_at_its_last_batch() -> None:
    cut = loader()
    batches = iter(cut)
    for _ in range(7):
        next(batches)
    assert place(cut) == (1, 0)


def test_reading_one_batch_keeps_the_position() -> None:
    looked, plain = loader(), loader()
    next(iter(looked))
    looked.sampler.set_epoch(0)  # Lightning announces the first epoch after the callbacks' on_train_start
    assert indices(looked) == indices(plain)


def test_announced_epochs_continue_at_the_position_of_the_last() -> None:
    expected = [batch for epoch in range(2) for batch in indices(_at(epoch))]
    lightning = loader()
    seen = []
    for epoch in (0, 1, 3):  # one number is missing, as after a resume from the end of an epoch with max_steps
        lightning.sampler.set_epoch(epoch)
        seen += indices(islice(lightning, 4))  # as with limit_train_batches=4
    assert seen == expected[:12]


def _at(epoch: int) -> ResumableLoader:
    placed = loader()
    placed.load_state_dict(placed.state_dict() | {"epoch": epoch})
    return placed


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4)])
def test_another_number_of_ranks_continues_with_the_same_global_batches(before: int, after: int) -> None:
    expected = indices(loader(size=8))
    for rank in range(before):
        cut = loader(size=8 // before, rank=rank, world=before)
        assert indices(islice(cut, 2)) == [batch[rank::before] for batch in expected[:2]]
        for other in range(after):
            resumed = loader(size=8 // after, rank=other, world=after)
            resumed.load_state_dict(cut.state_dict())
            assert indices(resumed) == [batch[other::after] for batch in expected[2:]]


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"size": 4}, "data.batch_size: .* had 8 examples, and a step of this run has 4; .* 8, .* for 1 process$"),
        ({"size": 8, "world": 2}, "data.batch_size: .* had 8 .* has 16; set data.batch_size to 4, .* for 2 processes$"),
        ({"size": 3, "world": 3}, "trainer.devices: .* 8 examples, and no data.batch_size .* on 3 processes; .*of 8$"),
        (
            {"size": 8, "seed": 1},
            "data.seed: .* with seed 0, and this run has 1; set data.seed or seed_everything to 0",
        ),
        ({"size": 8, "examples": 29}, "data.train_examples: .* had 30 training examples, and this run has 29"),
        ({"size": 8, "first": 1}, "data.train_file: the training examples are not those"),
    ],
)
def test_other_batches_are_refused(now: dict[str, int], message: str) -> None:
    saved = loader(size=8).state_dict()
    with pytest.raises(UserError, match=message) as caught:
        loader(**now).load_state_dict(saved)
    assert "\n" not in str(caught.value)


def test_a_state_without_an_order_is_refused() -> None:
    with pytest.raises(UserError, match="ckpt_path: the checkpoint does not say how its run ordered"):
        loader().load_state_dict({"epoch": 0, "batches": 1})
