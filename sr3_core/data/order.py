"""The order in which samples are seen: a permutation for each (seed, epoch), entered at any position without the ones before it.

Nothing is read for it: a position is a sample number by arithmetic alone, and the manifest says where that sample's bytes lie.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache

from sr3_core import seeds

MAX_BLOCK = 4096  # positions in which weights come out exactly; entering a block costs as many steps
_ROUNDS = 8
_WORD = 0xFFFFFFFFFFFFFFFF


class Order:
    """Sample numbers in a shuffled order that needs no state: ``sample(position)`` is a pure function of (num_samples, seed, position).

    ``position`` counts over epochs: position // num_samples is the epoch, and within one epoch every sample comes exactly once.
    A Feistel network over [0, 4^k), the smallest such domain that holds num_samples, restricted by cycle walking (Black and Rogaway
    2002, "Ciphers with arbitrary finite domains", method 3): fewer than 4 steps on average, no table.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        """Raises ValueError without a sample."""
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples}; allowed: at least 1")
        self.num_samples, self.seed = num_samples, seed
        self._half_bits = max(1, ((num_samples - 1).bit_length() + 1) // 2)

    def sample(self, position: int) -> int:
        """The sample number in [0, num_samples) at ``position`` >= 0. Raises ValueError for a negative position."""
        if position < 0:
            raise ValueError(f"position={position}; allowed: 0 or more")
        epoch, value = divmod(position, self.num_samples)
        keys = _round_keys(self.seed, epoch)
        while True:  # the network is a permutation of its domain, so the walk returns to [0, num_samples)
            value = _feistel(value, keys, self._half_bits)
            if value < self.num_samples:
                return value


class Mixture:
    """Samples of several sets in the proportion of their weights: ``place(position)`` is a pure function, as ``Order.sample`` is.

    Positions come in blocks of sum(weights), reduced by their common divisor. Each block holds every set as often as its weight says,
    in an order shuffled anew for each block; the n-th sample of a set is the n-th of its own Order. So 3 : 1 is exact in every four
    samples, and a set comes round at its own pace. One set alone is its Order.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[int], seed: int) -> None:
        """``sizes`` samples in each set. Raises ValueError for weights below 1, a block above MAX_BLOCK, a set without a sample."""
        if not sizes or len(sizes) != len(weights) or min(weights) < 1:
            raise ValueError(f"sizes {list(sizes)}, weights {list(weights)}; allowed: as many whole weights of at least 1 as sets")
        common = math.gcd(*weights)
        self.weights = tuple(weight // common for weight in weights)
        if sum(self.weights) > MAX_BLOCK:
            raise ValueError(f"weights {list(weights)}; allowed: a sum of at most {MAX_BLOCK} once reduced to {list(self.weights)}")
        self._orders = [Order(size, seed if part == 0 else seeds.from_key(f"mix {part}", seed)) for part, size in enumerate(sizes)]
        self._blocks = Order(sum(self.weights), seeds.from_key("mix blocks", seed))
        self._slots = [part for part, weight in enumerate(self.weights) for _ in range(weight)]

    def place(self, position: int) -> tuple[int, int]:
        """(set, sample number in it) at ``position`` >= 0. Raises ValueError for a negative position."""
        block, slot = divmod(position, len(self._slots))
        if len(self._orders) == 1:
            return 0, self._orders[0].sample(position)
        parts = [self._slots[self._blocks.sample(block * len(self._slots) + other)] for other in range(slot + 1)]
        part = parts[-1]
        return part, self._orders[part].sample(block * self.weights[part] + parts.count(part) - 1)


@lru_cache(maxsize=16)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    digest = hashlib.blake2b(f"{seed}\0order\0{epoch}".encode(), digest_size=8 * _ROUNDS).digest()
    return tuple(int.from_bytes(digest[8 * index : 8 * index + 8], "little") for index in range(_ROUNDS))


def _feistel(value: int, keys: tuple[int, ...], half_bits: int) -> int:
    mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return left << half_bits | right


def _mix(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit of a 64-bit word depends on all of its bits."""
    value &= _WORD
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _WORD
    return value ^ value >> 31
