"""Every random choice of a step is a hash of what it is for; no generator has a state to save or to share.

A key is a 64-bit integer mixed from (seed, step, purpose, ...). The same key gives the same draw on every rank, after
a resume and in whatever order weights are visited.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MASK = (1 << 64) - 1


def name_key(name: str) -> int:
    """Returns a 64-bit key of a name, the same in every process."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def mix(*parts: int, onto: int = 0) -> int:
    """Mixes integers into one 64-bit key; every part and their order count.

    ``mix(c, onto=mix(a, b))`` is ``mix(a, b, c)``.

    Each part is absorbed by the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), whose output bits each
    depend on all input bits.
    """
    key = onto
    for part in parts:
        key = (key + part + 0x9E3779B97F4A7C15) & _MASK
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK
        key ^= key >> 31
    return key


def mix_each(parts: ArrayLike, onto: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mixes many pairs at once: ``mix(part, onto=key)`` for each part and key, which are broadcast as numpy does."""
    key = onto + (np.array(parts, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = key ^ (key >> np.uint64(31))
    return mixed


def uniform(key: int) -> float:
    """Returns a key as a number in [0, 1), from its 53 upper bits."""
    return (key >> 11) * 2.0**-53
