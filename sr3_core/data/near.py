"""Near-duplicates: which 64-bit perceptual hashes are close, and what they join. Numbers and names alone, no images."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

BITS = 64
_BLOCK = 2048  # rows compared at once: bounds the memory of many hashes in one bucket

Name = TypeVar("Name")


def close_pairs(hashes: Iterable[int], distance: int) -> dict[tuple[int, int], int]:
    """(smaller, larger) -> differing bits, for each pair of different 64-bit hashes that differ in at most ``distance`` bits.

    Two hashes that differ in d bits are equal in at least one of d + 1 bands of their bits, so only those that share a band are compared.
    """
    unique = np.array(sorted(set(hashes)), dtype=np.uint64)
    found: dict[tuple[int, int], int] = {}
    edges = [BITS * number // (distance + 1) for number in range(distance + 2)]
    for start, end in itertools.pairwise(edges):
        bands = (unique >> np.uint64(start)) & np.uint64((1 << (end - start)) - 1)
        order = np.argsort(bands, kind="stable")
        borders = np.flatnonzero(np.diff(bands[order])) + 1
        for bucket in np.split(unique[order], borders):
            for first in range(0, len(bucket) if len(bucket) > 1 else 0, _BLOCK):
                rows = bucket[first : first + _BLOCK]
                bits = np.bitwise_count(rows[:, None] ^ bucket[None, first:])
                for row, column in np.argwhere((bits <= distance) & (bits > 0)):
                    pair = (int(rows[row]), int(bucket[first + column]))
                    found[min(pair), max(pair)] = int(bits[row, column])
    return found


def nearest(pairs: Mapping[tuple[int, int], int]) -> dict[int, tuple[int, int]]:
    """Hash -> (differing bits, the other hash) of its closest pair; the smaller other hash where two are as close."""
    best: dict[int, tuple[int, int]] = {}
    for (first, second), bits in pairs.items():
        for one, other in ((first, second), (second, first)):
            best[one] = min(best.get(one, (BITS + 1, 0)), (bits, other))
    return best


def joined(links: Iterable[Sequence[Name]]) -> dict[Name, Name]:
    """Name -> the representative of all names that ``links`` join with it, directly or over others; a link of one name alone is a name."""
    parent: dict[Name, Name] = {}

    def root(name: Name) -> Name:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for first, *others in links:
        for other in others:
            parent[root(other)] = root(first)
        root(first)
    return {name: root(name) for name in list(parent)}
