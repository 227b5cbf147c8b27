from __future__ import annotations

import numpy as np
import pytest
import torch

from zolit.hashing import mix, mix_each, name_key, uniform


@pytest.mark.parametrize(
    ("made", "value"),
    [
        (name_key(""), 13020603013274838756),
        (name_key("model.layers.0.self_attn.q_proj.weight"), 16370257070406477578),
        (mix(), 0),
        (mix(0), 0xE220A8397B1DCDAF),  # the first output of SplitMix64 seeded with 0, as published
        (mix(1, 2, 3), 7702586659592502839),
        (mix(3, 2, 1), 15432287184251514724),
        (mix(-1), 16490336266968443936),
        (mix((1 << 64) - 1, 1 << 63), 17866137399852670886),
        (uniform(mix(1, 2, 3)), 0.4175580595044027),
    ],
)
def test_golden(made: float, value: float) -> None:
    """Resumed runs and replayed steps hang on these values: they must never change."""
    assert made == value


def test_many_at_once_are_the_same() -> None:
    parts, keys = [0, 1, (1 << 64) - 1], [mix(5), mix(-1), 0, (1 << 64) - 1]
    found = mix_each([[part] for part in parts], np.array(keys, dtype=np.uint64))
    assert found.tolist() == [[mix(part, onto=key) for key in keys] for part in parts]


def test_mix_depends_on_every_part_and_on_their_order() -> None:
    keys = {mix(*parts) for parts in [(1,), (1, 0), (0, 1), (1, 1), (2, 0), (0, 2), (0, 0, 1), (0, 1, 0), (1, 0, 0)]}
    assert len(keys) == 9


def test_mix_has_no_collisions_over_a_run() -> None:
    assert len({mix(seed, step, direction) for seed in range(4) for step in range(2000) for direction in range(4)}) == (
        4 * 2000 * 4
    )


def test_one_bit_of_input_flips_half_of_the_output() -> None:
    flips = [bin(mix(7, step) ^ mix(7, step ^ (1 << bit))).count("1") for step in range(50) for bit in range(32)]
    assert abs(sum(flips) / len(flips) - 32.0) < 0.5
    assert min(flips) >= 12


def test_uniform_is_uniform_over_successive_steps() -> None:
    draws = torch.tensor([uniform(mix(3, step)) for step in range(20_000)], dtype=torch.float64)
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


def test_mixing_goes_on_from_a_key() -> None:
    assert mix(3, 4, onto=mix(1, 2)) == mix(1, 2, 3, 4)
