"""Counter-based randomness: the draw for (seed, purpose, index) is the same whatever was drawn before it. No torch here."""

import hashlib

import numpy as np


def generator(seed: int, purpose: str, index: int) -> np.random.Generator:
    """A Philox generator for one (seed, purpose, index); ``index`` is a global sample index or a derived seed, >= 0.

    Philox: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    key = hashlib.blake2b(f"{seed}\0{purpose}".encode(), digest_size=16).digest()
    counter = np.array([0, 0, index & 0xFFFFFFFFFFFFFFFF, index >> 64], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64), counter=counter))


def from_key(key: str, seed: int = 0) -> int:
    """A 63-bit integer for a sample's key, so that its noise depends on neither batch order nor sharding."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest(), "little") >> 1
