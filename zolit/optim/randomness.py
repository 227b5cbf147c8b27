"""Keys from which all random choices of a step are drawn. No generator has state to save or to share.

A key is a 64-bit integer, hashed from (seed, step, purpose, ...). The same key gives the same draw on every rank, after
a resume, and in any order of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

_MASK = (1 << 64) - 1


def key_of(name: str) -> int:
    """Hashes a name into a 64-bit key, the same in every process."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def fold_in(*parts: int, onto: int = 0) -> int:
    """Hashes integers into one 64-bit key. The key depends on every part and on their order.

    ``fold_in(c, onto=fold_in(a, b))`` equals ``fold_in(a, b, c)``.

    The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) hashes in each part. Each of its output bits
    depends on all input bits.
    """
    key = onto
    for part in parts:
        key = (key + part + 0x9E3779B97F4A7C15) & _MASK
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK
        key ^= key >> 31
    return key


def fold_in_each(parts: ArrayLike, onto: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Computes ``fold_in(part, onto=key)`` for many pairs at once, broadcast by the rules of numpy."""
    key = onto + (np.array(parts, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: NDArray[np.uint64] = key ^ (key >> np.uint64(31))
    return hashed


def uniform(key: int) -> float:
    """Converts the upper 53 bits of a key to a number in [0, 1)."""
    return (key >> 11) * 2.0**-53


@dataclass(frozen=True, slots=True)
class Step:
    """Identifies one step of a run, and derives all keys of the step.

    Attributes:
        seed: Base seed of the run.
        index: Index of the step, from 0.
    """

    seed: int
    index: int

    def key(self, purpose: int, *parts: int) -> int:
        """Returns the key of a random choice that a stage makes in this step.

        Args:
            purpose: ``key_of`` the name of the purpose.
            parts: Distinguish several choices of the same purpose.
        """
        return fold_in(self.seed, purpose, self.index, *parts)

    def draw_key(self, *parts: int) -> int:
        """Returns the key from which the directions of this step are drawn."""
        return fold_in(self.seed, self.index, *parts)


class Generators:
    """Keeps one generator for each device, and seeds it again for each draw.

    The generator of a CPU is a Mersenne twister. It would take 32 bits of a seed, and spread them over its state of 624
    words by a weak recurrence. Its state is therefore filled by a hash of all 64 bits of the key.
    """

    def __init__(self) -> None:
        self._generators: dict[torch.device, torch.Generator] = {}

    def seeded(self, key: int, device: torch.device) -> torch.Generator:
        """Returns the generator of a device, seeded by a key. Called before each draw; valid until the next call."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        generator = self._generators[device]
        if device.type != "cpu":
            return generator.manual_seed(key & (1 << 63) - 1)
        state = _fresh_state().clone()
        words = fold_in_each(_WORDS, np.array(fold_in(_STATE, onto=key), dtype=np.uint64)) >> np.uint64(32)
        state[_OFFSET : _OFFSET + words.nbytes] = torch.from_numpy(words.view(np.uint8))
        generator.set_state(state)
        return generator


_STATE = key_of("state of a generator")
_WORDS = np.arange(624, dtype=np.uint64)
_OFFSET = 24
"""Bytes before the words in the state of torch's generator of a CPU: a seed, two flags and a position."""


@cache
def _fresh_state() -> torch.Tensor:
    """Returns the state of a generator that was just seeded. It makes its first block of numbers at the next draw."""
    return torch.Generator().manual_seed(0).get_state()
