from __future__ import annotations

import numpy as np
import pytest
import torch

from zolit.optim.randomness import Generators, fold_in, fold_in_each, key_of, uniform


@pytest.mark.parametrize(
    ("made", "value"),
    [
        (key_of(""), 13020603013274838756),
        (key_of("model.layers.0.self_attn.q_proj.weight"), 16370257070406477578),
        (fold_in(), 0),
        (fold_in(0), 0xE220A8397B1DCDAF),  # the first output of SplitMix64 seeded with 0, as published
        (fold_in(1, 2, 3), 7702586659592502839),
        (fold_in(3, 2, 1), 15432287184251514724),
        (fold_in(-1), 16490336266968443936),
        (fold_in((1 << 64) - 1, 1 << 63), 17866137399852670886),
        (uniform(fold_in(1, 2, 3)), 0.4175580595044027),
    ],
)
def test_golden(made: float, value: float) -> None:
    """Resumed runs and replayed steps depend on these values: they must never change."""
    assert made == value


def test_many_at_once_are_the_same() -> None:
    parts, keys = [0, 1, (1 << 64) - 1], [fold_in(5), fold_in(-1), 0, (1 << 64) - 1]
    found = fold_in_each([[part] for part in parts], np.array(keys, dtype=np.uint64))
    assert found.tolist() == [[fold_in(part, onto=key) for key in keys] for part in parts]


def test_fold_in_depends_on_every_part_and_on_their_order() -> None:
    keys = {
        fold_in(*parts) for parts in [(1,), (1, 0), (0, 1), (1, 1), (2, 0), (0, 2), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    }
    assert len(keys) == 9


def test_fold_in_has_no_collisions_over_a_run() -> None:
    assert len(
        {fold_in(seed, step, direction) for seed in range(4) for step in range(2000) for direction in range(4)}
    ) == (4 * 2000 * 4)


def test_one_bit_of_input_flips_half_of_the_output() -> None:
    flips = [
        bin(fold_in(7, step) ^ fold_in(7, step ^ (1 << bit))).count("1") for step in range(50) for bit in range(32)
    ]
    assert abs(sum(flips) / len(flips) - 32.0) < 0.5
    assert min(flips) >= 12


def test_uniform_is_uniform_over_successive_steps() -> None:
    draws = torch.tensor([uniform(fold_in(3, step)) for step in range(20_000)], dtype=torch.float64)
    assert float(draws.min()) >= 0.0
    assert float(draws.max()) < 1.0
    counts = torch.histc(draws, bins=50, min=0.0, max=1.0)
    chi_square = float(((counts - 400.0) ** 2 / 400.0).sum())
    assert chi_square < 49 + 5 * 98**0.5
    correlation = torch.corrcoef(torch.stack([draws[:-1], draws[1:]]))[0, 1]
    assert abs(float(correlation)) < 0.03


def test_uniform_ends() -> None:
    assert uniform(0) == 0.0
    assert uniform((1 << 64) - 1) == 1.0 - 2.0**-53


def test_folding_continues_from_a_key() -> None:
    assert fold_in(3, 4, onto=fold_in(1, 2)) == fold_in(1, 2, 3, 4)


CPU = torch.device("cpu")


def test_a_generator_takes_all_bits_of_a_key() -> None:
    """The seed of a Mersenne twister has 32 bits: keys that differ in other bits gave equal draws."""
    generators, key = Generators(), fold_in(1)
    draws = [torch.randn(8, generator=generators.seeded(key ^ (1 << bit), CPU)) for bit in range(64)]
    draws.append(torch.randn(8, generator=generators.seeded(key, CPU)))
    assert len({tuple(draw.tolist()) for draw in draws}) == 65
    assert torch.equal(draws[-1], torch.randn(8, generator=Generators().seeded(key, CPU)))
    assert torch.equal(draws[-1], torch.randn(8, generator=generators.seeded(key - (1 << 64), CPU)))


def test_a_generator_is_a_twister_whose_state_is_hashed() -> None:
    """numpy's twister with the same words gives the same numbers: the words are where torch expects them."""
    words = fold_in_each(np.arange(624), np.array(fold_in(key_of("state of a generator"), onto=7), dtype=np.uint64))
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": (words >> 32).astype(np.uint32), "pos": 624}}
    drawn = torch.empty(2000, dtype=torch.int32).random_(generator=Generators().seeded(7, CPU))
    assert drawn.tolist() == (twister.random_raw(2000) % (1 << 31)).tolist()


def test_a_generator_forgets_the_draw_before() -> None:
    """A normal number that is left over from an odd number of draws is not used after the next key."""
    generators = Generators()
    whole = torch.randn(3, generator=generators.seeded(5, CPU))
    torch.randn(1, generator=generators.seeded(4, CPU))
    assert torch.equal(torch.randn(3, generator=generators.seeded(5, CPU)), whole)
